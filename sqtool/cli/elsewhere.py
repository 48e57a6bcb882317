"""Options that say where both sides are measured, and the engine section that they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from evals.spec import EngineSpec

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Elsewhere:
    """What was given of --device, or of the servers that run already."""

    device: str | None = None
    baseline_url: str | None = None
    candidate_url: str | None = None
    baseline_name: str | None = None
    candidate_name: str | None = None
    api_key_env: str | None = None

    @property
    def given(self) -> bool:
        """Whether anything was."""
        return self != Elsewhere()

    @property
    def label(self) -> str:
        """What a run that was measured there is called behind its name."""
        return self.device or "endpoint"

    def check(self) -> None:
        """click's UsageError for options that do not go together."""
        remote = self.given and self.device is None
        if self.device is not None and self != Elsewhere(device=self.device):
            raise click.UsageError("a server that runs already has its device; give --device or --baseline-url")
        if remote and self.baseline_url is None:
            raise click.UsageError("--candidate-url, the names and --api-key-env go with --baseline-url")
        if remote and self.candidate_url is None and self.candidate_name is None:
            raise click.UsageError("say where the candidate is served: --candidate-url, or --candidate-name there")

    def engine(self, base: EngineSpec) -> EngineSpec:
        """`base` moved there. `EngineError` when a server does not answer, `UsageError` when it serves several models
        and no name was given."""
        from evals.engines.openai import only_model
        from evals.spec import EngineSpec

        if not self.given:
            return base
        if self.device is not None:
            own = base if base.kind != "openai" else EngineSpec()
            return EngineSpec.model_validate({**own.model_dump(), "device": self.device})
        assert self.baseline_url is not None
        there = {"kind": "openai", "api_key_env": self.api_key_env}
        names = []
        for url, name, option in (
            (self.baseline_url, self.baseline_name, "--baseline-name"),
            (self.candidate_url or self.baseline_url, self.candidate_name, "--candidate-name"),
        ):
            probe = EngineSpec.model_validate({**there, "base_url": url, "model": name or "?"})
            names.append(name or only_model(probe, option))
        places = {"base_url": self.baseline_url, "candidate_base_url": self.candidate_url}
        return EngineSpec.model_validate({**there, **places, "model": names[0], "candidate_model": names[1]})


def elsewhere(function: F) -> F:
    """--device and the options of servers that run already, given to the command as `place`, an `Elsewhere`."""
    options = (
        click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Class of device that must answer here."),
        click.option("--baseline-url", metavar="URL", help="Server that serves the baseline: any OpenAI-compatible."),
        click.option("--candidate-url", metavar="URL", help="Server that serves the candidate; default: the same one."),
        click.option("--baseline-name", metavar="NAME", help="Its name there; default: the only model that is served."),
        click.option("--candidate-name", metavar="NAME", help="Likewise the candidate's name."),
        click.option("--api-key-env", metavar="VARIABLE", help="Environment variable that holds the servers' key."),
    )

    @wraps(function)
    def wrapper(
        *args: Any,
        device: str | None,
        baseline_url: str | None,
        candidate_url: str | None,
        baseline_name: str | None,
        candidate_name: str | None,
        api_key_env: str | None,
        **other: Any,
    ) -> Any:
        place = Elsewhere(device, baseline_url, candidate_url, baseline_name, candidate_name, api_key_env)
        place.check()
        return function(*args, place=place, **other)

    decorated: Any = wrapper
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
