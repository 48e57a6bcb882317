"""The `evaluate.lm_eval` part of a recipe. Keys and their meaning are lm-eval's own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from sqtool.spec import Spec


class LmEvalSpec(Spec):
    """Tasks that lm-eval runs, after the others, on the same engine. Each is asked whole: none of them ends early."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Names of tasks, groups or tags, lm-eval's own or those in include_path, or paths of YAML files."
    )
    include_path: str | None = Field(
        default=None, description="Folder with further tasks, absolute or relative to the project root."
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="Examples in each prompt; default: what the task says."
    )
    limit: int | None = Field(
        default=None,
        gt=0,
        description="Only the first so many items of each task, and never more than evaluate.limit. For trying "
        "things out.",
    )
    apply_chat_template: bool = Field(default=False, description="Put the prompts into the model's chat template.")
    fewshot_as_multiturn: bool | None = Field(
        default=None,
        description="Examples as turns of the conversation; default: true with apply_chat_template, false without.",
    )
    system_instruction: str | None = Field(default=None, description="A system message before each prompt.")
    gen_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Generation settings that replace the task's own (temperature, max_gen_toks, until, ...). "
        "evaluate.generation does not count for these tasks.",
    )
    confirm_run_unsafe_code: bool = Field(
        default=False, description="Allow tasks that run what the model wrote as a program on this machine."
    )

    @field_validator("tasks")
    @classmethod
    def _no_task_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a task is named twice")
        return value

    @model_validator(mode="after")
    def _turns_need_a_template(self) -> LmEvalSpec:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template: true")
        return self

    @property
    def multiturn(self) -> bool:
        """Whether examples are turns, as `lm_eval` decides it where nobody says."""
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn
