"""The page at the top of a rendered folder: what is in it, and how it is applied."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.lws import names
from deploy.lws.tree import MARK, Part, Tree


def readme(tree: Tree) -> str:
    """A page in Markdown."""
    overlays = tree.overlays
    lines = [
        f"<!-- {MARK}, which writes over changes -->",
        "",
        f"# Serving profile {tree.profile} on Kubernetes",
        "",
        "| folder | what it is |",
        "|---|---|",
        f"| `base` | {_first(tree.base.about)} |",
        *_rows("components", tree.components),
        *_rows("overlays", overlays),
        *_rows("cluster", tree.cluster),
        "",
        "Once, the tokens that Baton's processes show each other, and that operators show routers:",
        "",
        "```sh",
    ]
    namespaces = sorted({part.namespace for part in overlays.values()})
    for namespace in namespaces:
        lines += [
            f"kubectl create namespace {namespace}",
            f"kubectl -n {namespace} create secret generic {names.TOKENS} \\",
            f'  --from-literal={names.CLUSTER_TOKEN_KEY}="$(openssl rand -hex 32)" \\',
            f'  --from-literal={names.ADMIN_TOKEN_KEY}="$(openssl rand -hex 32)"',
        ]
    lines += [
        "```",
        "",
        "Then, and after each change, the overlay of your kind of cluster:",
        "",
        "```sh",
    ]
    for name in overlays:
        if name in tree.cluster:
            lines.append(f"kubectl apply --server-side -k cluster/{name}  # by an administrator")
        lines.append(f"kubectl apply --server-side -k overlays/{name}")
    lines += [
        "```",
        "",
        "Where the tree newly leaves the pools' sizes to a controller or an autoscaler, share them "
        "first,",
        "or groups go that serve (docs/kubernetes/README.md, *Handing the size of pools over*).",
        "",
        "To change something, change the profile or the site and render again:",
        f"`baton deploy render --profile {tree.profile} --out FOLDER`.",
    ]
    return "\n".join(lines) + "\n"


def _rows(folder: str, parts: Mapping[str, Part]) -> list[str]:
    return [f"| `{folder}/{name}` | {_first(part.about)} |" for name, part in parts.items()]


def _first(about: str) -> str:
    """The first sentence, on one line."""
    text = " ".join(about.split())
    end = text.find(". ")
    return (text if end < 0 else text[: end + 1]).replace("|", "\\|")
