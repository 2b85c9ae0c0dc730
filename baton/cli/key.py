"""``baton key``: makes, lists and revokes the API keys that a router asks its clients for.

The key itself is printed once, alone on stdout, and kept nowhere: the file or the Redis holds its
hash. Nothing here talks to a router; routers notice changes by themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from baton.cli.guard import clear_errors, home_folder, survivable_output
from baton.errors import SettingsError

T = TypeVar("T")

TENANTS_ENV = "BATON_TENANTS"
"""A path or a Redis URL: where the tenants are kept, for this command and for routers."""

_FILE_NAME = "tenants.yaml"
_MIN_PREFIX = 6

key_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Makes and revokes API keys.\n\nKeys belong to tenants, which have limits and a priority. "
    f"They are kept in a file ({_FILE_NAME} in Baton's home) or in a Redis; {TENANTS_ENV} names "
    "another place once and for all. A router without a place for keys is open to everybody.",
)

_File = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help="Tenants file.", show_default="$BATON_TENANTS, or in Baton's home"
    ),
]
_Store = Annotated[
    str | None,
    typer.Option(
        help="Redis that holds the tenants, instead of a file. A password in it is seen by other "
        f"users of this machine; {TENANTS_ENV} is not.",
        show_default=False,
    ),
]
_Home = Annotated[
    Path | None,
    typer.Option(envvar="BATON_HOME", help="Baton's folder.", show_default="~/.local/state/baton"),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_AsIs = "as it is; no limit for a new one"
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")


@key_app.command("create", short_help="Make a key, and its tenant if it is new.")
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is.", metavar="TENANT")],
    priority: Annotated[
        int | None,
        typer.Option(help="Band in the queue; higher first.", show_default="as it is; 0"),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(help="Share against others of the band.", show_default="as it is; 1"),
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(help="Requests per minute.", show_default=_AsIs)
    ] = None,
    tpm: Annotated[
        int | None,
        typer.Option(help="Tokens per minute, prompt and answer.", show_default=_AsIs),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests at a time.", show_default=_AsIs)
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Models it may use, with * and ?; several with commas or by repeating.",
            show_default="as it is; all",
        ),
    ] = None,
    file: _File = None,
    store: _Store = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Makes a key for a tenant and prints it: this once, for only its hash is kept.

    A tenant that is there already gets one more key, and the limits that are given here; 0 takes a
    limit away.

    Examples:

      baton key create acme --rpm 600 --tpm 200000

      baton key create batch --priority -1 --models 'llama-*,demo'
    """
    with clear_errors(), survivable_output():
        given = {
            "priority": priority,
            "weight": weight,
            "requests_per_minute": rpm,
            "tokens_per_minute": tpm,
            "concurrency": concurrency,
            "models": [name.strip() for text in models for name in text.split(",")]
            if models
            else None,
        }
        # A limit of 0 would be a tenant that may do nothing; that is what `revoke` is for.
        settings = {
            name: None if value == 0 and name in _LIMITS else value
            for name, value in given.items()
            if value is not None
        }
        run_create(tenant, settings, _place(file, store, home), as_json=as_json)


@key_app.command("list", short_help="List tenants, their limits and keys.")
def list_keys(
    file: _File = None, store: _Store = None, home: _Home = None, as_json: _Json = False
) -> None:
    """Lists tenants, their limits, and the first digits of their keys' hashes.

    Example:

      baton key list --json
    """
    with clear_errors(), survivable_output():
        run_list(_place(file, store, home), as_json=as_json)


@key_app.command("revoke", short_help="Take away keys.")
def revoke(
    tenant: Annotated[
        str | None, typer.Argument(help="Takes away all keys of this tenant.", metavar="[TENANT]")
    ] = None,
    hash_prefix: Annotated[
        str | None,
        typer.Option(
            "--hash",
            metavar="PREFIX",
            help="Takes away the one key whose hash starts so, as `baton key list` shows it.",
        ),
    ] = None,
    file: _File = None,
    store: _Store = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Takes away keys; routers refuse them within seconds. The tenant and its limits stay.

    Examples:

      baton key revoke acme

      baton key revoke --hash 3f9a1c
    """
    with clear_errors(), survivable_output():
        run_revoke(tenant, hash_prefix, _place(file, store, home), as_json=as_json)


def run_create(tenant: str, settings: Mapping[str, Any], place: str, *, as_json: bool) -> None:
    """Adds a key to a tenant and prints it.

    Raises:
        SettingsError: name or settings are wrong, or the place cannot be used.
        StoreUnavailable: the Redis cannot be reached.
    """
    from router.tenants import TenantSpec, hash_key, new_key
    from router.tenants.spec import parse_tenant, plain

    key = new_key()

    def edit(tenants: dict[str, TenantSpec]) -> bool:
        old = tenants.get(tenant)
        fields = {**(plain(old) if old is not None else {}), **settings}
        fields["key_hashes"] = [*fields.get("key_hashes", ()), hash_key(key)]
        tenants[tenant] = parse_tenant(tenant, json.dumps(fields), source="baton key")
        return old is None

    is_new = _with_book(place, lambda book: book.change(edit))
    where = _shown(place)
    if as_json:
        _print_json({"tenant": tenant, "key": key, "hash": hash_key(key), "kept_in": where})
        return
    sys.stdout.write(f"{key}\n")
    sys.stderr.write(
        f"This is the only time that the key is shown. {'New tenant' if is_new else 'Tenant'} "
        f"{tenant}, kept in {where}.\n"
    )


def run_list(place: str, *, as_json: bool) -> None:
    """Prints a table or JSON.

    Raises:
        SettingsError: the place cannot be used.
        StoreUnavailable: the Redis cannot be reached.
    """
    from rich.table import Table
    from rich.text import Text

    from baton.cli.console import print_table

    tenants = _with_book(place, lambda book: book.tenants())
    if as_json:
        data = {name: spec.model_dump(mode="json") for name, spec in sorted(tenants.items())}
        _print_json({"kept_in": _shown(place), "tenants": data})
        return
    table = Table(
        "tenant", "priority", "weight", "rpm", "tpm", "concurrency", "models", "keys",
        box=None, pad_edge=False,
    )  # fmt: skip
    for name, spec in sorted(tenants.items()):
        limits = (spec.requests_per_minute, spec.tokens_per_minute, spec.concurrency)
        table.add_row(
            name,
            str(spec.priority),
            f"{spec.weight:g}",
            *("-" if limit is None else str(limit) for limit in limits),
            Text("all" if spec.models is None else ",".join(spec.models)),
            " ".join(text.removeprefix("sha256:")[:12] for text in spec.key_hashes) or "none",
        )
    print_table(table)


def run_revoke(tenant: str | None, prefix: str | None, place: str, *, as_json: bool) -> None:
    """Takes away a tenant's keys, or the one whose hash starts with a prefix.

    Raises:
        SettingsError: neither or both are given, or nothing or too much fits.
        StoreUnavailable: the Redis cannot be reached.
    """
    from router.tenants import TenantSpec

    if (tenant is None) == (prefix is None):
        raise SettingsError("say whose keys to revoke, or --hash PREFIX for one key; not both")
    start = "" if prefix is None else prefix.removeprefix("sha256:").lower()
    if prefix is not None and len(start) < _MIN_PREFIX:
        raise SettingsError(f"--hash wants at least {_MIN_PREFIX} digits of the hash")

    def edit(tenants: dict[str, TenantSpec]) -> list[tuple[str, str]]:
        if tenant is not None and tenant not in tenants:
            raise SettingsError(f"there is no tenant {tenant!r} in {_shown(place)}")
        found = [
            (name, text)
            for name, spec in tenants.items()
            for text in spec.key_hashes
            if name == tenant or (prefix is not None and text[len("sha256:") :].startswith(start))
        ]
        if prefix is not None and len(found) != 1:
            count = "no key has" if not found else f"{len(found)} keys have"
            raise SettingsError(f"{count} a hash that starts with {start}")
        gone = {text for _, text in found}
        for name in {name for name, _ in found}:
            kept = [text for text in tenants[name].key_hashes if text not in gone]
            tenants[name] = tenants[name].model_copy(update={"key_hashes": kept})
        return found

    found = _with_book(place, lambda book: book.change(edit))
    if as_json:
        _print_json({"revoked": [{"tenant": name, "hash": text} for name, text in found]})
        return
    count = len(found)
    of = tenant if tenant is not None else found[0][0]
    sys.stdout.write(f"{count} {'key' if count == 1 else 'keys'} of {of} revoked\n")


def _place(file: Path | None, store: str | None, home: Path | None) -> str:
    """A path, or a Redis URL."""
    from baton.store import is_redis_url

    if file is not None and store is not None:
        raise SettingsError("tenants are kept in a --file or in a --store; not in both")
    if store is not None and not is_redis_url(store):
        raise SettingsError(
            "--store wants a Redis URL: redis://, rediss://, redis+sentinel:// or redis+cluster://"
        )
    if store is not None:
        return store
    if file is not None:
        return str(file.expanduser())
    return os.environ.get(TENANTS_ENV) or str(home_folder(home) / _FILE_NAME)


def _shown(place: str) -> str:
    """The place without what is secret about it."""
    from baton.store import is_redis_url
    from baton.store.redis_url import parse_redis_url

    return parse_redis_url(place).describe() if is_redis_url(place) else place


def _with_book(place: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Opens the place, does something with it, and closes it."""
    from baton.clock import SystemClock
    from baton.store import is_redis_url
    from router.tenants import FileBook, RedisTenants

    async def run() -> T:
        if not is_redis_url(place):
            return await work(FileBook(Path(place)))
        book = RedisTenants(place, SystemClock())
        try:
            return await work(book)
        finally:
            await book.close()

    return asyncio.run(run())


def _print_json(data: object) -> None:
    sys.stdout.write(json.dumps(data, indent=2) + "\n")
