"""Certificates for servers of tests, and a server that has one."""

import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.media_server import Handler, Server


def write_certificate(path: Path, *, address: str = "127.0.0.1", days: int = 2) -> Path:
    """Write a self-signed certificate and its key; it began ten days ago.

    address: of the server that it is for. days: until it expires; negative: it has expired.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


class TlsServer(Server):
    """The server of media, with a certificate; counts connections, refused ones too."""

    num_connections = 0

    def get_request(self):
        self.num_connections += 1
        return super().get_request()


@contextlib.contextmanager
def tls_server(certificate: Path) -> Iterator[TlsServer]:
    """Run a server with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = TlsServer(("127.0.0.1", 0), Handler)
    server.url = f"https://127.0.0.1:{server.server_port}"
    server.requests, server.targets, server.headers = [], [], []
    server.bad_ranges, server.num_bytes = [], 0
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
