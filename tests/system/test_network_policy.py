"""Who reaches whom in the cluster: the network policies of deploy/, evaluated."""

import os
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.public_hosts import is_public
from tests.support.kubernetes import (
    KUBERNETES,
    OVERLAYS,
    built,
    composed,
    group_templates,
    weights_template,
)
from tests.support.network_policy import Pod, may_connect

RUNS = ["no-gpu", "one-gpu", "many-gpus", "nightly"]
OURS = "reelscribe"
STORAGE = "52.216.8.45"  # an address of Amazon's S3
PUBLIC = [STORAGE, "1.1.1.1", "2600:1f18::7"]
METADATA = ["169.254.169.254", "169.254.169.252", "169.254.170.23", "fd00:ec2::254", "fe80::1"]
AZURE = "168.63.129.16"  # a public address that leads to the host of a virtual machine
PRIVATE = [
    *("10.0.0.1", "10.96.0.1", "172.16.0.2", "172.31.255.254", "192.168.1.1", "100.64.0.1"),
    *("100.127.255.254", "127.0.0.1", "0.0.0.0", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
    *("fc00::1", "fd12:3456::1", "::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"),
]
SPECIAL = [  # some of these Python calls global
    IPv4Network(network)
    for network in (f"{AZURE}/32", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4")
]
EVERY_PORT = [22, 80, 443, 988, 2049, 3306, 5432, 6379, 6443, 8080, 8265, 10250, 10255]
API_SERVER = "10.0.12.34"  # as a user's overlay names it

OTHER = Pod("shop", {"app": "web"}, "10.4.9.9")
DNS = Pod("kube-system", {"k8s-app": "kube-dns"}, "10.4.0.53")
KUBELET_PROXY = Pod("kube-system", {"k8s-app": "kube-proxy"}, "10.4.0.54")
OPERATOR = Pod("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}, "10.4.0.60")
PROMETHEUS = Pod("monitoring", {"app.kubernetes.io/name": "prometheus"}, "10.4.0.61")
NEIGHBOUR = Pod(OURS, {"app": "something-else"}, "10.4.0.62")


def policies_of(manifests: list[dict]) -> list[dict]:
    return [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]


def policies(overlay: str = "one-gpu") -> list[dict]:
    return policies_of(built(overlay))


def pods(overlay: str = "one-gpu") -> dict[str, Pod]:
    """The pods of a run and of the copying, with the labels that they are rendered with."""
    templates = group_templates(overlay) | {"weights": weights_template()}
    return {
        name: Pod(OURS, template["metadata"]["labels"], f"10.4.1.{k}")
        for k, (name, template) in enumerate(templates.items())
    }


RAY_PODS = ["head", "decoders", "engines"]
STORAGE_PODS = ["head", "decoders", "weights"]


@pytest.mark.parametrize("overlay", RUNS)
def test_the_pods_that_need_it_reach_storages_on_the_internet(overlay: str):
    ours = pods(overlay)
    for name in STORAGE_PODS:
        for address in PUBLIC:
            assert may_connect(policies(overlay), ours[name], address, 443), (name, address)
            for port in (22, 80, 6443, 25):
                assert not may_connect(policies(overlay), ours[name], address, port)


def test_engines_reach_nothing_outside_the_run():
    engine = pods()["engines"]
    for address in [*PUBLIC, *PRIVATE, *METADATA, API_SERVER]:
        for port in EVERY_PORT:
            assert not may_connect(policies(), engine, address, port), (address, port)


@pytest.mark.parametrize("name", ["head", "decoders", "engines", "weights"])
@pytest.mark.parametrize("address", [*PRIVATE, *METADATA, AZURE, API_SERVER])
def test_nobody_reaches_a_private_address(name: str, address: str):
    for overlay in RUNS:
        ours = pods(overlay)
        for port in EVERY_PORT if name in ours else []:
            assert not may_connect(policies(overlay), ours[name], address, port), (overlay, port)


ADDRESSES = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    # Most of IPv6 is not in use: look where it is.
    st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(IPv6Address),
    st.ip_addresses(v=4).map(lambda a: IPv6Address(f"2002:{int(a) >> 16:x}:{int(a) & 0xFFFF:x}::")),
    st.ip_addresses(v=4).map(lambda a: IPv6Address(f"64:ff9b::{a}")),
)


@given(ADDRESSES)
def test_what_policies_call_public_is_what_the_reader_of_urls_calls_public(
    address: IPv4Address | IPv6Address,
):
    if may_connect(policies(), pods()["decoders"], str(address), 443):
        assert is_public(str(address)) and not address.is_multicast
    elif isinstance(address, IPv4Address) and not any(address in each for each in SPECIAL):
        assert not is_public(str(address))


@pytest.mark.parametrize("network", SPECIAL)
def test_ranges_of_special_use_are_left_out(network: IPv4Network):
    for address in (network[0], network[network.num_addresses // 2], network[-1]):
        assert not may_connect(policies(), pods()["decoders"], str(address), 443)


@pytest.mark.parametrize("overlay", RUNS)
def test_pods_of_a_run_reach_each_other_and_nobody_else_reaches_them(overlay: str):
    run = {name: pod for name, pod in pods(overlay).items() if name in RAY_PODS}
    for pod in run.values():
        for peer in run.values():
            assert all(may_connect(policies(overlay), pod, peer, port) for port in EVERY_PORT)
        for stranger in (OTHER, NEIGHBOUR, pods(overlay)["weights"], DNS, STORAGE, OPERATOR):
            reached = [p for p in EVERY_PORT if may_connect(policies(overlay), stranger, pod, p)]
            is_operator_at_head = stranger is OPERATOR and pod is run["head"]
            assert reached == ([8265] if is_operator_at_head else [])
            assert not may_connect(policies(overlay), pod, stranger, 6379) or stranger == STORAGE
        for port in EVERY_PORT:
            allowed = may_connect(policies(overlay), PROMETHEUS, pod, port)
            assert allowed == (port == 8080)


def test_nobody_reaches_the_copying_of_weights():
    weights = pods()["weights"]
    for policy_set in (policies(), policies_of(built("weights"))):
        for stranger in (OTHER, NEIGHBOUR, OPERATOR, PROMETHEUS, pods()["decoders"], STORAGE):
            for port in EVERY_PORT:
                assert not may_connect(policy_set, stranger, weights, port)
        assert may_connect(policy_set, weights, STORAGE, 443)
        assert may_connect(policy_set, weights, DNS, 53, "UDP")


@pytest.mark.parametrize("name", ["head", "decoders", "engines", "weights"])
def test_names_are_asked_of_the_clusters_dns_alone(name: str):
    pod = pods()[name]
    for protocol in ("UDP", "TCP"):
        assert may_connect(policies(), pod, DNS, 53, protocol)
        for stranger in (KUBELET_PROXY, OTHER, "8.8.8.8", "10.96.0.10", "169.254.20.10"):
            assert not may_connect(policies(), pod, stranger, 53, protocol)


def own_overlay(folder: Path, **kustomization: object) -> list[dict]:
    """A user's overlay beside one-gpu, as deploy/README.md describes it."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(OVERLAYS / "one-gpu", folder)],
        **kustomization,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return policies_of(composed(folder))


def test_the_api_server_is_for_the_heads_autoscaler_alone(tmp_path: Path):
    patch = [
        {"op": "replace", "path": "/spec/egress/0/to/0/ipBlock/cidr", "value": f"{API_SERVER}/32"}
    ]
    target = {"kind": "NetworkPolicy", "name": "reelscribe-api-server"}
    found = own_overlay(tmp_path, patches=[{"target": target, "patch": yaml.safe_dump(patch)}])
    for name, pod in pods().items():
        for port in (443, 6443):
            assert may_connect(found, pod, API_SERVER, port) == (name == "head")
            assert not may_connect(found, pod, "10.0.12.35", port)
        assert not may_connect(found, pod, API_SERVER, 10250)  # the kubelet's


def test_the_metadata_service_is_for_those_who_ask_for_it(tmp_path: Path):
    component = os.path.relpath(KUBERNETES / "metadata", tmp_path)
    found = own_overlay(tmp_path, components=[component])
    for name, pod in pods().items():
        for address, port in [("169.254.169.254", 80), ("169.254.169.252", 988)]:
            has_identity = name in ("head", "decoders", "weights")
            assert may_connect(found, pod, address, port) == has_identity
        for address in PRIVATE:
            assert not any(may_connect(found, pod, address, port) for port in EVERY_PORT)


def test_the_evaluation_can_fail():
    """A policy that says otherwise is seen: the one that stood here once."""
    (former,) = yaml.safe_load_all(
        """
        metadata: {namespace: reelscribe}
        spec:
          podSelector: {matchLabels: {app.kubernetes.io/name: reelscribe}}
          policyTypes: [Ingress, Egress]
          egress:
            - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [169.254.0.0/16]}}]
              ports: [{port: 443}, {port: 6443, endPort: 6444}]
        """
    )
    decoder = pods()["decoders"]
    assert may_connect([former], decoder, "10.0.0.1", 443)
    assert may_connect([former], decoder, OTHER, 6444) and not may_connect(
        [former], decoder, OTHER, 6445
    )
    assert not may_connect([former], decoder, "169.254.169.254", 443)
    assert not may_connect([former], OTHER, decoder, 443)
    assert may_connect([former], OTHER, "10.0.0.1", 443)
