"""Who may reach whom by Kubernetes' NetworkPolicies, evaluated as the API's reference says.

Source: https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network


@dataclass(frozen=True)
class Pod:
    """A pod with its labels, those of its namespace, and its address."""

    namespace: str
    labels: dict[str, str]
    address: str = "10.4.0.7"
    namespace_labels: dict[str, str] = field(default_factory=dict)

    def all_namespace_labels(self) -> dict[str, str]:
        """With the one that Kubernetes sets itself."""
        return {"kubernetes.io/metadata.name": self.namespace} | self.namespace_labels


Place = Pod | str
"""A pod, or an address outside the cluster."""


def may_connect(
    policies: list[dict], source: Place, goal: Place, port: int, protocol: str = "TCP"
) -> bool:
    """Whether a connection is allowed, out of its source and into its goal."""
    return _allows(policies, "Egress", source, goal, port, protocol) and _allows(
        policies, "Ingress", goal, source, port, protocol
    )


def _allows(
    policies: list[dict], way: str, pod: Place, peer: Place, port: int, protocol: str
) -> bool:
    if isinstance(pod, str):  # not a pod: policies are for pods
        return True
    mine = [p for p in policies if _is_for(p, pod, way)]
    rules = [
        (policy["metadata"]["namespace"], rule)
        for policy in mine
        for rule in policy["spec"].get(way.lower()) or []
    ]
    side = "to" if way == "Egress" else "from"
    return not mine or any(
        _matches_peer(rule.get(side), namespace, peer)
        and _matches_port(rule.get("ports"), port, protocol)
        for namespace, rule in rules
    )


def _is_for(policy: dict, pod: Pod, way: str) -> bool:
    spec = policy["spec"]
    default = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    return (
        policy["metadata"]["namespace"] == pod.namespace
        and way in spec.get("policyTypes", default)
        and selects(spec["podSelector"], pod.labels)
    )


def _matches_peer(peers: list[dict] | None, namespace: str, place: Place) -> bool:
    if not peers:
        return True
    return any(_is_peer(peer, namespace, place) for peer in peers)


def _is_peer(peer: dict, namespace: str, place: Place) -> bool:
    if block := peer.get("ipBlock"):
        # Which address a block is compared with differs by network plugin: a pod's own counts too.
        address = ip_address(place.address if isinstance(place, Pod) else place)
        excepted = [ip_network(each) for each in block.get("except", [])]
        inside = address in ip_network(block["cidr"])
        return inside and not any(address in each for each in excepted)
    if isinstance(place, str):
        return False
    if "namespaceSelector" in peer:
        in_namespace = selects(peer["namespaceSelector"], place.all_namespace_labels())
    else:
        in_namespace = place.namespace == namespace
    return in_namespace and selects(peer.get("podSelector", {}), place.labels)


def _matches_port(ports: list[dict] | None, port: int, protocol: str) -> bool:
    if not ports:
        return True
    return any(
        each.get("protocol", "TCP") == protocol
        and ("port" not in each or each["port"] <= port <= each.get("endPort", each["port"]))
        for each in ports
    )


def selects(selector: dict, labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects all."""
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(_holds(each, labels) for each in selector.get("matchExpressions", []))


def _holds(expression: dict, labels: dict[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ValueError(f"operator {expression['operator']}")
