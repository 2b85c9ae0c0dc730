"""Sites: what comes with Baton, and how mistakes in a file are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from baton.errors import SettingsError
from deploy.lws.site import Site, builtin_sites, load_site, site_from_text, site_text

SMALL: dict[str, Any] = {
    "apiVersion": "baton/v1",
    "kind": "Site",
    "metadata": {"name": "mine"},
    "spec": {
        "images": {
            "router": "registry.example/router:1",
            "worker_cpu": "registry.example/cpu:1",
            "controller": "registry.example/controller:1",
        },
        "accelerators": {"cpu": {"cpu": 1, "memory_gib": 4}},
    },
}


def site_with(**changes: Any) -> Site:
    data = {**SMALL, "spec": {**SMALL["spec"], **changes}}
    return site_from_text(yaml.safe_dump(data), "mine.yaml")


def refusal(**changes: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        site_with(**changes)
    return caught.value.message


def test_builtin_sites_are_sound() -> None:
    """Those that come with Baton can be read, and are called what their files are called."""
    assert builtin_sites() == ("gke", "kind-cpu", "onprem")
    assert [load_site(name).name for name in builtin_sites()] == list(builtin_sites())


def test_builtin_sites_have_the_accelerators_of_profiles() -> None:
    """A100, L4 and CPU are known everywhere; on a cluster without cards the CPU stands in."""
    for name in builtin_sites():
        site = load_site(name)
        for label in ("nvidia-a100-80gb", "nvidia-l4"):
            gpu = site.accelerator(label).resource
            assert gpu == (None if name == "kind-cpu" else "nvidia.com/gpu")
        assert site.accelerator("cpu").resource is None


def _models(kind: Any, seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in seen:
            seen.add(kind)
            yield kind
            for info in kind.model_fields.values():
                yield from _models(info.annotation, seen)
        return
    for argument in get_args(kind):
        yield from _models(argument, seen)


def test_every_field_says_what_it_is() -> None:
    """Each field's description names its default, or says that it is required."""
    found = list(_models(Site, set()))
    assert len(found) > 15
    for model in found:
        for name, info in model.model_fields.items():
            said = info.description or ""
            words = ("Required",) if info.is_required() else ("Default",)
            tag = name == "kind" and said.startswith("Always")
            assert tag or any(word in said for word in words), f"{model.__name__}.{name}: {said}"


def test_mistakes_are_told_with_file_and_line() -> None:
    """An unknown field and a wrong value are named with their lines, all at once."""
    text = yaml.safe_dump(SMALL, sort_keys=False) + "  namespacs: x\n  startup_limit_s: soon\n"
    with pytest.raises(SettingsError) as caught:
        site_from_text(text, "mine.yaml")
    first, second = caught.value.message.splitlines()
    assert first == ("mine.yaml:14: spec.namespacs: is not a known field; did you mean namespace?")
    assert second.startswith("mine.yaml:15: spec.startup_limit_s: must be a whole number")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("registry.example/router:latest", "latest"),
        ("registry.example/router", "a tag or a digest"),
        ("Registry Example", "must be an image"),
        ("registry.example:5000/router", "a tag or a digest"),
    ],
)
def test_images_are_pinned(image: str, says: str) -> None:
    """An image that would be another one tomorrow is refused."""
    assert says in refusal(images={**SMALL["spec"]["images"], "router": image})


@pytest.mark.parametrize(
    "image", ["router:1.2", "registry.example:5000/a/router@sha256:" + "0f" * 32, "a/b:1-x_y.z"]
)
def test_pinned_images_are_taken(image: str) -> None:
    """A tag or a digest will do, with a registry's port or without."""
    site = site_with(images={**SMALL["spec"]["images"], "router": image})
    assert site.spec.images.router == image


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"other_accelerators": "tpu"}, "spec.other_accelerators: must be one of cpu"),
        (
            {"accelerators": {"nvidia-l4": {"resource": "n.com/gpu", "cpu": 1, "memory_gib": 4}}},
            "spec.images.worker_gpu: is required, because nvidia-l4 has a resource",
        ),
        (
            {"accelerators": {"cpu": {"cpu": 1, "memory_gib": 1, "shm_gib": 1}}},
            "spec.accelerators.cpu.shm_gib: must be less than memory_gib (1)",
        ),
        (
            {"accelerators": {"cpu": {"cpu": 1, "memory_gib": 4, "dra_selector": "true"}}},
            "dra_class: is required with dra_selector",
        ),
        ({"store": {"kind": "url"}}, "spec.store: needs either url or url_secret"),
        ({"store": {"kind": "url", "url": "http://x"}}, "must be redis://"),
        ({"store": {"kind": "url", "url": "redis://u:secret@x"}}, "must not hold a password"),
        ({"routers": {"tenants": True}}, "would lose the API keys"),
        ({"autoscaling": {"kind": "keda"}}, "prometheus_url: is required with kind keda"),
        ({"autoscaling": {"decode": {"min": 5, "max": 4}}}, "must not be more than max (4)"),
        ({"queue": {"local_queue": "q", "cohort": "c"}}, "no meaning without cluster_queue"),
        ({"monitoring": ["podmonitor", "podmonitor"]}, "names one twice"),
        ({"weights": {"kind": "ftp"}}, "must be one of demo, hub, pvc, nfs, gcsfuse or image"),
        ({"weights": {"kind": "image", "reference": "a/b:1"}}, "must be pinned by digest"),
        ({"weights": {"kind": "pvc", "claim": "c", "folder": "/a"}}, "without a slash in front"),
    ],
)
def test_what_does_not_fit_together(changes: dict[str, Any], says: str) -> None:
    """Fields that contradict each other, or would do harm, are refused with what to do."""
    assert says in refusal(**changes)


def test_a_password_is_not_repeated() -> None:
    """What is refused for holding a secret does not print it."""
    assert "hush" not in refusal(store={"kind": "url", "url": "redis://:hush@x"})


def test_unknown_accelerator_lists_the_known_ones() -> None:
    """A profile's label that the site does not have: the message helps with the spelling."""
    with pytest.raises(SettingsError, match="did you mean nvidia-l4") as caught:
        load_site("gke").accelerator("nvidia-l40")
    assert "cpu, nvidia-a100-40gb, nvidia-a100-80gb, nvidia-l4" in caught.value.message


def test_unknown_site_lists_the_known_ones() -> None:
    """A name that is none of the built-in ones is told with them."""
    with pytest.raises(SettingsError, match=r"did you mean onprem\?.* gke, kind-cpu, onprem"):
        load_site("on-prem")


def test_a_site_from_a_file(tmp_path: Path) -> None:
    """A path is read as it is, and its text comes back with its comments."""
    path = tmp_path / "mine.yaml"
    text = "# ours\n" + yaml.safe_dump(SMALL)
    path.write_text(text)
    assert load_site(str(path)).name == "mine"
    assert site_text(str(path)) == (text, str(path))
    with pytest.raises(SettingsError, match="no such file"):
        load_site(str(tmp_path / "other.yaml"))
