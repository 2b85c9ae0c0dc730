"""The operators' API of profiles: which there are, which is active, switching to another."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baton.errors import BodyTooLarge, InvalidRequest, ProfileError, ProfileNotFound
from baton.types import RouterRecord
from profiles import ServingProfile
from profiles.document import MAX_BYTES
from profiles.switching import Phase, Terms, terms_of
from router.state import RouterState
from router.switching.proposals import parsed

_DAY_S = 86_400.0
_MAX_BODY_BYTES = 2 * MAX_BYTES


class SwitchRequest(BaseModel):
    """What to switch to, and how. What is left out is as the profile's ``spec.switch`` says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    profile: str | None = Field(default=None, description="Name of a profile.")
    text: str | None = Field(default=None, description="A whole profile as YAML, instead.")
    origin: str = Field(default="request", max_length=500, description="Where the text is from.")
    by: str = Field(
        default="operator", min_length=1, max_length=200, description="Who asks, for the history."
    )
    prepare_s: float | None = Field(default=None, gt=0, le=_DAY_S)
    canary_share: float | None = Field(default=None, ge=0, le=1)
    hold_s: float | None = Field(default=None, ge=0, le=_DAY_S)
    canary_s: float | None = Field(default=None, gt=0, le=_DAY_S)
    min_requests: int | None = Field(default=None, ge=1, le=1_000_000)
    skip: list[Annotated[Phase, Field(strict=False)]] | None = Field(
        default=None, description="Phases to leave out: prepare, shadow, canary."
    )
    check_only: bool = Field(default=False, description="Change nothing; say what would happen.")

    def terms(self, profile: ServingProfile) -> Terms:
        """The profile's, with what the operator says instead.

        Raises:
            InvalidRequest: a phase cannot be left out.
        """
        told = {
            "prepare_s": self.prepare_s,
            "share": self.canary_share,
            "hold_s": self.hold_s,
            "canary_s": self.canary_s,
            "min_requests": self.min_requests,
        }
        terms = terms_of(profile)
        skipped = set(terms.skip if self.skip is None else self.skip)
        for phase in skipped:
            if phase.over:
                raise InvalidRequest(f"{phase} is no phase to skip", param="skip")
        if self.canary_share is not None:
            skipped.discard(Phase.CANARY)
            if self.canary_share == 0 or (self.skip and Phase.CANARY in self.skip):
                skipped.add(Phase.CANARY)
        chosen = {key: value for key, value in told.items() if value is not None}
        terms = msgspec.structs.replace(terms, skip=tuple(sorted(skipped)), **chosen)
        if terms.canary_s < terms.hold_s:
            # Who asks for a longer hold means it.
            terms = msgspec.structs.replace(terms, canary_s=terms.hold_s)
        return terms


def add_profile_routes(admin: APIRouter, state: RouterState) -> None:
    """``/admin/profiles``, ``/admin/switch``, ``/admin/rollback``, ``/admin/history``."""
    conductor = state.conductor

    @admin.get("/profiles", summary="Profiles that can be switched to, and what is refused")
    async def profiles() -> Response:
        active = conductor.agreed.active
        rows = [
            {
                "name": name,
                "version": profile.version,
                "mode": profile.spec.mode,
                "description": profile.metadata.description,
                "from": where,
                "active": (name, profile.version) == (active.name, active.version),
            }
            for name, (where, profile) in conductor.proposals.known().items()
        ]
        return _json({"source": source_report(state), "profiles": rows})

    @admin.get("/profiles/{name}", summary="One profile, with every default")
    async def profile(name: str) -> Response:
        found = _find(state, name)
        document = found.model_dump(mode="json", by_alias=True)
        document["spec"] = found.canonical_spec()
        return _json({"name": found.name, "version": found.version, "document": document})

    @admin.get("/switch", summary="The active profile, the switch that is on, the routers")
    async def switch() -> Response:
        return _json(switch_report(state))

    @admin.get("/history", summary="How the last switches ended")
    async def history() -> Response:
        return _json({"history": conductor.agreed.history})

    @admin.post("/switch", summary="Switch to another profile", status_code=202)
    async def begin(request: Request) -> Response:
        asked = await _asked(request)
        profile = _profile(state, asked)
        if asked.check_only:
            checked = await conductor.check(profile)
            return _json(
                {
                    "fits": not checked.fit.problems,
                    "problems": checked.fit.problems,
                    "notes": [f"not there yet: {m}" for m in checked.missing]
                    + list(checked.fit.notes),
                    "changes": checked.changes,
                    "shadow": checked.shadow,
                }
            )
        number = await conductor.switch(profile, asked.terms(profile), by=asked.by)
        return _json({**switch_report(state), "number": number}, 202)

    @admin.post("/switch/skip", summary="End the phase that a switch is in", status_code=202)
    async def skip(
        phase: Annotated[
            Phase | None, Query(description="The phase that is meant; without: whichever it is.")
        ] = None,
    ) -> Response:
        await conductor.skip(phase)
        return _json(switch_report(state), 202)

    @admin.post(
        "/rollback",
        summary="Roll back the switch that is on, or go back to the profile before",
        status_code=202,
    )
    async def rollback(
        number: Annotated[
            int | None, Query(ge=1, description="The switch that is meant; without: any.")
        ] = None,
    ) -> Response:
        await conductor.roll_back(number)
        return _json(switch_report(state), 202)


def switch_report(state: RouterState) -> dict[str, Any]:
    """What is agreed, and who serves by it."""
    conductor, servings = state.conductor, state.servings
    agreed = conductor.agreed
    own = RouterRecord(
        id=state.router_id,
        node=conductor.node,
        profile=servings.current.name,
        profile_version=servings.current.version,
        seen=conductor.revision,
    )
    others = [record for record in state.pool.others if record.id != own.id]
    return {
        "active": agreed.active,
        "previous": agreed.previous,
        "switch": agreed.switch,
        "phase_s": conductor.phase_s,
        "last": max(agreed.history, key=lambda report: report.order, default=None),
        "source": source_report(state),
        "routers": [
            {
                "id": record.id,
                "node": record.node,
                "profile": record.profile,
                "profile_version": record.profile_version,
                "seen": record.seen,
                "self": record is own,
            }
            for record in sorted([own, *others], key=lambda record: record.id)
        ],
        "revision": conductor.revision,
        "store": state.store.describe(),
        "store_lost": state.pool.is_lost,
        "turning": sorted(state.pool.turning),
    }


def source_report(state: RouterState) -> dict[str, Any] | None:
    """The source of profiles, and what of it is refused."""
    proposals = state.conductor.proposals
    if not proposals.where:
        return None
    return {
        "where": proposals.where,
        "active": proposals.bundle.active,
        "digest": proposals.bundle.digest,
        "problems": proposals.problems,
    }


def _find(state: RouterState, name: str) -> ServingProfile:
    proposals = state.conductor.proposals
    found = proposals.find(name)
    if found is None:
        known = ", ".join(proposals.known())
        raise ProfileNotFound(f"There is no profile {name!r}; there are: {known}.", param="profile")
    return found


def _profile(state: RouterState, asked: SwitchRequest) -> ServingProfile:
    if (asked.profile is None) == (asked.text is None):
        raise InvalidRequest("give either profile, a name, or text, a whole profile as YAML")
    if asked.text is None:
        return _find(state, asked.profile or "")
    try:
        return parsed(asked.text, asked.origin, state.settings)
    except ProfileError as error:
        raise InvalidRequest("\n".join(error.problems), param="text") from error


async def _asked(request: Request) -> SwitchRequest:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than {_MAX_BODY_BYTES} bytes.")
    try:
        return SwitchRequest.model_validate_json(bytes(body) or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{where}: {first['msg']}", param=where or None) from error


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


__all__ = ["SwitchRequest", "add_profile_routes", "source_report", "switch_report"]
