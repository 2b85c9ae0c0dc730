"""``baton deploy``: what it takes to run a profile on a Kubernetes cluster, as files or on stdout.

It renders and compares. It asks no cluster and changes none: that is for kubectl, for GitOps, or
for ``baton controller``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.guard import clear_errors, survivable_output
from baton.errors import SettingsError

if TYPE_CHECKING:
    from deploy.lws.render import Where
    from deploy.lws.tree import Tree

_DEFAULT_OVERLAY = "gke"
_DIFFERS = 1

deploy_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Renders what Kubernetes needs to serve a profile.\n\n"
    "A profile says what is served, a site what the cluster is like. Of both a kustomize folder is "
    "made, for kubectl and for Git.",
)


@deploy_app.command("site", short_help="Print a built-in site, to start one of your own.")
def site_command(
    name: Annotated[str, typer.Argument(help="gke, onprem or kind-cpu.", metavar="NAME")],
) -> None:
    """Prints the file of a built-in site, comments and all.

    A site says how this cluster names its nodes, images, volumes and queues. Change what is
    different on yours, and render with --site.

    Example:

      baton deploy site gke > cluster.yaml
    """
    with clear_errors(), survivable_output():
        from deploy.lws.site import site_text

        typer.echo(site_text(name)[0], nl=False)


@deploy_app.command("render", short_help="Render a profile to a kustomize folder.")
def render_command(
    profile: Annotated[
        str,
        typer.Option(envvar="BATON_PROFILE", help="Serving profile: a built-in name or a file."),
    ],
    overlay: Annotated[
        str | None,
        typer.Option(
            help="Which kind of cluster: gke, onprem or kind-cpu.",
            show_default=f"all of them with --out, else {_DEFAULT_OVERLAY}",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            help="A site's file, which says what your cluster is like, instead of a built-in one.",
            metavar="FILE",
        ),
    ] = None,
    controller: Annotated[
        str | None,
        typer.Option(
            help="lws: a LeaderWorkerSet per pool. disaggregatedset: one DisaggregatedSet.",
            show_default="what the site says, lws",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write base, components and overlays to.", metavar="DIR"),
    ] = None,
    rendered: Annotated[
        bool,
        typer.Option(
            "--rendered", help="With --out: each overlay's built objects beside it, as one file."
        ),
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Write nothing; end with 1 if this folder differs from what would be written.",
            metavar="DIR",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="With --out: remove what else lies in the folder. There is no way back."
        ),
    ] = False,
) -> None:
    """Renders a profile to what Kubernetes needs to serve it.

    With --out it writes a kustomize folder: a base, components, and an overlay for each kind of
    cluster; keep it in Git and apply an overlay. Files are replaced as a whole, so change the
    profile or the site instead, and render again. Without --out, the objects of one overlay go
    to stdout.

    Nothing is asked of a cluster. The Secret with the tokens is made by hand; router.yaml says
    how.

    Examples:

      baton deploy render --profile disaggregated --out deploy/serving

      kubectl apply --server-side -k deploy/serving/overlays/gke

      baton deploy render --profile mine.yaml --site cluster.yaml --check deploy/serving

      baton deploy render --profile cpu-demo --overlay kind-cpu | kubectl apply --server-side -f -
    """
    with clear_errors(), survivable_output():
        _need_extra()
        if out is not None and check is not None:
            raise SettingsError("--out writes and --check does not; give one of them")
        if out is None and (rendered or force):
            raise SettingsError("--rendered and --force go with --out DIR")
        folder = out or check
        places = _places(overlay, site, all_of_them=folder is not None)
        tree = _tree(profile, places, controller)
        if check is not None:
            raise typer.Exit(_check(tree, check))
        if out is not None:
            _write(tree, out, rendered=rendered, force=force)
            return
        from deploy.lws import yaml_text
        from deploy.lws.build import build

        (name,) = tree.overlays
        typer.echo(yaml_text.stream(build(tree, name)), nl=False)


def _need_extra() -> None:
    if importlib.util.find_spec("jsonpatch") is None:
        raise SettingsError(
            "jsonpatch is missing, by which overlays are built; install baton-serving[kubernetes]"
        )


def _places(overlay: str | None, site: Path | None, *, all_of_them: bool) -> list[Where]:
    from deploy.lws.render import builtin_places, place_of
    from deploy.lws.site import builtin_sites

    if site is not None:
        if overlay is not None:
            raise SettingsError(
                "--overlay names a built-in site and --site a file; give one of them"
            )
        # A path, whatever it looks like: names are --overlay's.
        return [place_of(str(site.absolute()))]
    if overlay is not None and overlay not in builtin_sites():
        raise SettingsError(
            f"there is no overlay {overlay!r}; there are {', '.join(builtin_sites())}, and --site "
            "FILE for a cluster of your own"
        )
    if overlay is None and all_of_them:
        return list(builtin_places())
    return [place_of(overlay or _DEFAULT_OVERLAY)]


def _tree(name: str, places: list[Where], controller: str | None) -> Tree:
    from deploy.lws.render import render, source_of

    found, text = source_of(name)
    return render(found, sites=places, workload=controller, text=text)


def _check(tree: Tree, folder: Path) -> int:
    from deploy.lws.kustomize import differences

    found = differences(tree, folder)
    if not found:
        typer.echo(f"{folder} is what would be written", err=True)
        return 0
    typer.echo("\n".join(found))
    return _DIFFERS


def _write(tree: Tree, folder: Path, *, rendered: bool, force: bool) -> None:
    from deploy.lws.kustomize import write

    files = write(tree, folder, force=force, built=rendered)
    sys.stderr.write(f"wrote {len(files)} files to {folder}\n")
    for name in tree.overlays:
        sys.stderr.write(f"apply: kubectl apply --server-side -k {folder / 'overlays' / name}\n")
