"""What ``baton up`` starts, and where: ports, GPUs, commands and environments."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from baton.cli.plan import (
    Wish,
    assign_gpus,
    child_environment,
    cpu_threads_for,
    local_host,
    make_plan,
    seat,
)
from baton.cli.ports import PortPicker, check_host, is_free
from baton.errors import SettingsError
from baton.types import Role
from profiles import PoolSpec, ServingProfile, resolve_profile, with_overrides

DEFAULTS = (8000, 8100, 5600)
FOLDER = Path("/models/demo-123")


def wish_for(profile: str | ServingProfile = "cpu-demo", **changes: Any) -> Wish:
    """What somebody asks for who gives a profile and little else."""
    if isinstance(profile, str):
        profile = resolve_profile(profile)
    fields: dict[str, Any] = {
        "profile_ref": profile.name,
        "profile": profile,
        "host": "127.0.0.1",
        "port": None,
        "worker_port": None,
        "side_channel_port": None,
        "home": Path("/home/x/baton"),
        "log_level": "info",
        "cpu_threads": 1,
    }
    return Wish(**{**fields, **changes})


def picker_with(*taken: int) -> PortPicker:
    """A picker on a machine where these ports are taken."""
    return PortPicker(lambda _, port: port not in taken)


def flags(argv: tuple[str, ...]) -> dict[str, str]:
    """The options of a command."""
    names = argv[3::2]
    assert all(name.startswith("--") for name in names)
    return dict(zip(names, argv[4::2], strict=True))


def test_default_ports_when_all_are_free() -> None:
    """8000 for the router, 8001 for its admin API, workers from 8100, side channels from 5600;
    nothing to tell."""
    picker = picker_with()
    seating = seat(wish_for("disaggregated"), picker, defaults=DEFAULTS)
    assert (seating.port, seating.admin_port) == (8000, 8001)
    assert [
        (worker.name, worker.role, worker.port, worker.side_channel_port)
        for worker in seating.workers
    ] == [
        ("prefill-1", Role.PREFILL, 8100, 5600),
        ("decode-1", Role.DECODE, 8101, 5601),
        ("decode-2", Role.DECODE, 8102, 5602),
    ]
    assert picker.moves == []


def test_default_ports_move_up_and_say_so() -> None:
    """Each taken one is passed over, for all that come after it too."""
    picker = picker_with(8000, 8001, 8100, 8102)
    seating = seat(wish_for("disaggregated"), picker, defaults=DEFAULTS)
    assert (seating.port, seating.admin_port) == (8002, 8003)
    assert [worker.port for worker in seating.workers] == [8101, 8103, 8104]
    assert picker.moves == [
        "port 8000 is taken, so the router uses 8002",
        "port 8001 is taken, so the admin API uses 8003",
        "port 8100 is taken, so prefill-1 uses 8101",
        "port 8102 is taken, so decode-1 uses 8103",
    ]


@pytest.mark.parametrize(
    ("changes", "taken", "message"),
    [
        ({"port": 9000}, 9000, r"port 9000 .* for the router, is taken.*--port"),
        ({"admin_port": 9001}, 9001, r"port 9001 .* for the admin API, is taken.*--admin-port"),
        ({"worker_port": 9100}, 9101, r"port 9101 .* for decode-1, is taken.*--worker-port"),
        ({"side_channel_port": 9200}, 9200, r"port 9200 .*side channel of prefill-1.*--side"),
    ],
)
def test_ports_asked_for_are_never_replaced(
    changes: dict[str, Any], taken: int, message: str
) -> None:
    """A taken one is an error that names the port, what it is for, and the flag."""
    with pytest.raises(SettingsError, match=message):
        seat(wish_for(**changes), picker_with(taken), defaults=DEFAULTS)


def test_ports_are_given_once() -> None:
    """A router on the first worker's port moves the worker; asked for twice, it is an error."""
    seating = seat(wish_for(port=8100), picker_with(), defaults=DEFAULTS)
    assert (seating.port, seating.workers[0].port) == (8100, 8101)
    with pytest.raises(SettingsError, match="taken"):
        seat(wish_for(port=9000, worker_port=9000), picker_with(), defaults=DEFAULTS)


def test_the_range_of_ports_ends() -> None:
    """Above 65535 there is nothing to move to."""
    with pytest.raises(SettingsError, match="is taken"):
        seat(wish_for(worker_port=65_535), picker_with(), defaults=DEFAULTS)
    with pytest.raises(SettingsError, match="no free port"):
        seat(wish_for(), PortPicker(lambda *_: False), defaults=DEFAULTS)


def test_tensor_parallel_ranks_get_a_side_channel_each() -> None:
    """The next worker's handshakes start behind the last rank of the one before; a row that is
    broken by a taken port is not used."""
    text = resolve_profile("disaggregated").model_dump(mode="json", by_alias=True)
    text["spec"]["pools"]["decode"]["tensor_parallel"] = 2
    profile = ServingProfile.model_validate(text)
    seating = seat(wish_for(profile), picker_with(5602), defaults=DEFAULTS)
    assert [worker.side_channel_port for worker in seating.workers] == [5600, 5603, 5605]


def test_stages_count_like_ranks() -> None:
    """Each device of a worker has a side channel and a GPU, whatever it shares of the model."""
    text = resolve_profile("standard").model_dump(mode="json", by_alias=True)
    text["spec"]["pools"]["standard"].update(tensor_parallel=2, pipeline_parallel=2)
    wish = wish_for(ServingProfile.model_validate(text), gpus=tuple("01234567"))
    seating = seat(wish, picker_with(), defaults=DEFAULTS)
    assert [worker.side_channel_port for worker in seating.workers] == [5600, 5604]
    assert [worker.gpus for worker in seating.workers] == [tuple("0123"), tuple("4567")]
    with pytest.raises(SettingsError, match="needs 4 GPUs"):
        assign_gpus([("s", pool(tensor_parallel=2, pipeline_parallel=2))], ["0", "1"])


def test_a_worker_of_several_machines_is_not_started_on_one() -> None:
    """One sentence says which pool it is, and where such a group runs; no port was looked for."""
    wish = wish_for("multi-node")
    with pytest.raises(
        SettingsError,
        match=r"pool decode of profile multi-node spans 2 machines.*"
        r"Kubernetes.*LeaderWorkerSet.*--profile",
    ):
        seat(wish, PortPicker(lambda *_: pytest.fail("looked for a port")), defaults=DEFAULTS)


def test_a_real_port_that_is_taken() -> None:
    """The probe sees listeners of other processes; a port that was given back is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)


def test_hosts() -> None:
    """An address that this machine does not have is refused before anything starts."""
    check_host("127.0.0.1")
    check_host("0.0.0.0")
    with pytest.raises(SettingsError, match=r"cannot listen on '203\.0\.113\.7'"):
        check_host("203.0.113.7")


def test_commands_agree_on_profile_model_and_name() -> None:
    """Router and workers get the same profile, model folder, served name and home; so they agree
    on the profile's version, and the demo model is still called demo."""
    wish = wish_for()
    plan = make_plan(wish, seat(wish, picker_with(), defaults=DEFAULTS), FOLDER, {})
    commands = [flags(process.argv) for process in plan.processes]
    shared = {
        "--profile": "cpu-demo",
        "--model": str(FOLDER),
        "--served-name": "demo",
        "--home": "/home/x/baton",
        "--log-level": "info",
    }
    assert all(command.items() >= shared.items() for command in commands)
    assert [process.argv[1:3] for process in plan.processes] == [
        ("-m", "router"),
        ("-m", "prefill"),
        ("-m", "decode"),
    ]
    assert commands[0]["--store"] == "memory://"
    assert commands[0]["--admin-port"] == "8001"
    assert plan.admin_url == "http://127.0.0.1:8001"
    assert [command["--port"] for command in commands] == ["8000", "8100", "8101"]
    assert [command["--side-channel-port"] for command in commands[1:]] == ["5600", "5601"]
    assert {command["--registry"] for command in commands[1:]} == {"http://127.0.0.1:8000"}
    assert [command["--worker-id"] for command in commands[1:]] == ["prefill-1", "decode-1"]
    assert {command["--host"] for command in commands[1:]} == {"127.0.0.1"}
    assert plan.profile == with_overrides(
        wish.profile, model_source=str(FOLDER), served_name="demo"
    )
    assert plan.worker_grace_s >= wish.profile.spec.limits.drain_s


def test_overrides_are_the_children_s_too() -> None:
    """A name asked for is passed on; without one it follows from the model asked for."""
    named = with_overrides(resolve_profile("cpu-demo"), served_name="mine")
    other = with_overrides(resolve_profile("cpu-demo"), model_source="owner/model")
    for profile, name in ((named, "mine"), (other, "owner/model")):
        wish = wish_for(profile)
        plan = make_plan(wish, seat(wish, picker_with(), defaults=DEFAULTS), FOLDER, {})
        assert {flags(process.argv)["--served-name"] for process in plan.processes} == {name}


def test_standard_workers() -> None:
    """They are decode processes in the standard role, which nobody else is in."""
    wish = wish_for("standard")
    plan = make_plan(wish, seat(wish, picker_with(), defaults=DEFAULTS), FOLDER, {})
    assert [process.name for process in plan.workers] == ["standard-1", "standard-2"]
    assert all(process.argv[1:3] == ("-m", "decode") for process in plan.workers)
    assert all(process.env["BATON_ROLE"] == "standard" for process in plan.workers)
    assert "BATON_ROLE" not in plan.router.env


def test_a_router_for_everybody_is_reached_over_loopback() -> None:
    """0.0.0.0 is listened on, and never dialled."""
    wish = wish_for(host="0.0.0.0")
    plan = make_plan(wish, seat(wish, picker_with(), defaults=DEFAULTS), FOLDER, {})
    assert flags(plan.router.argv)["--host"] == "0.0.0.0"
    assert plan.router.url == "http://127.0.0.1:8000"
    assert local_host("192.0.2.1") == "192.0.2.1"


def test_settings_of_ours_are_not_inherited() -> None:
    """Children take what is everybody's (token, device, the rest of the environment) and nothing
    that was said to ``baton up``."""
    env = child_environment(
        {
            "PATH": "/bin",
            "HF_TOKEN": "t",
            "BATON_CLUSTER_TOKEN": "c",
            "BATON_ADMIN_TOKEN": "a",
            "BATON_ADMIN_PORT": "1",
            "BATON_DEVICE": "cpu",
            "BATON_PORT": "1",
            "BATON_ROLE": "standard",
            "BATON_STORE": "redis://x",
            "BATON_HOME": "/elsewhere",
        },
        Path("/home/x/baton"),
    )
    assert env == {
        "PATH": "/bin",
        "HF_TOKEN": "t",
        "BATON_CLUSTER_TOKEN": "c",
        "BATON_ADMIN_TOKEN": "a",
        "BATON_DEVICE": "cpu",
        "BATON_HOME": "/home/x/baton",
        "PYTHONUNBUFFERED": "1",
    }


def test_secrets_are_not_shown() -> None:
    """A plan in a log or a traceback does not print its environment."""
    wish = wish_for()
    seating = seat(wish, picker_with(), defaults=DEFAULTS)
    plan = make_plan(wish, seating, FOLDER, {"BATON_CLUSTER_TOKEN": "very-secret"})
    assert plan.router.env["BATON_CLUSTER_TOKEN"] == "very-secret"
    assert "very-secret" not in repr(plan)
    assert not any("very-secret" in word for process in plan.processes for word in process.argv)


def pool(**changes: object) -> PoolSpec:
    """A pool on some GPU."""
    return PoolSpec.model_validate({"accelerator": "nvidia-l4", **changes})


def test_gpus_are_given_in_turn() -> None:
    """One each where there are enough, and several for tensor parallel workers."""
    workers = [("p", pool(tensor_parallel=2)), ("d1", pool()), ("d2", pool())]
    assert assign_gpus(workers, ["0", "1", "2", "3"]) == {
        "p": ("0", "1"),
        "d1": ("2",),
        "d2": ("3",),
    }


def test_gpus_are_shared_only_where_memory_allows_it() -> None:
    """Shares that fit one GPU together are let through; otherwise the error says which would."""
    small = pool(gpu_memory_utilization=0.4)
    assert assign_gpus([("p", small), ("d", small)], ["GPU-1"]) == {
        "p": ("GPU-1",),
        "d": ("GPU-1",),
    }
    with pytest.raises(SettingsError, match=r"gpu_memory_utilization: 0.47 or less"):
        assign_gpus([("p", pool()), ("d", pool())], ["0"])
    with pytest.raises(SettingsError, match="needs 2 GPUs"):
        assign_gpus([("p", pool(tensor_parallel=2))], ["0"])


def test_unknown_gpus_leave_the_choice_to_the_engines() -> None:
    """No CUDA_VISIBLE_DEVICES is set then, and the caller's own is kept."""
    assert assign_gpus([("p", pool())], []) == {"p": ()}
    wish = wish_for("standard", gpus=("4", "7"))
    seating = seat(wish, picker_with(), defaults=DEFAULTS)
    plan = make_plan(wish, seating, FOLDER, {"CUDA_VISIBLE_DEVICES": "4,7"})
    assert [process.env["CUDA_VISIBLE_DEVICES"] for process in plan.workers] == ["4", "7"]
    assert plan.router.env["CUDA_VISIBLE_DEVICES"] == "4,7"


@pytest.mark.parametrize(("workers", "cores", "threads"), [(2, 2, 1), (3, 2, 1), (2, 16, 8)])
def test_cpu_threads(workers: int, cores: int, threads: int) -> None:
    """Engines fill the cores together, with at least one thread each."""
    assert cpu_threads_for(workers, cores) == threads
