"""What branches and tags demand of those who push to them: the tables `[policy.NAME]` of mgit.toml."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated
from typing import Literal as OneOf

import msgspec

from modelgit.objects.refs import TAGS, short_ref

__all__ = ["APPROVAL_KINDS", "ApprovalKind", "ApprovalRule", "OverrideRule", "RefPolicy", "Requirement"]

ApprovalKind = OneOf["code", "auto_map", "tokenizer", "chat_template", "gate"]
"""Changes that weights do not show: files that a loader runs, classes of one's own that config files name, tokenizers,
chat templates, and the gate itself (settings of suites and policies, `evals/`)."""

APPROVAL_KINDS: tuple[ApprovalKind, ...] = ("code", "auto_map", "tokenizer", "chat_template", "gate")

Bytes = Annotated[int, msgspec.Meta(ge=0)]


class _Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of settings; unknown keys are refused."""


class Requirement(_Rule, frozen=True, kw_only=True):
    """A suite that must have passed on the very weights that are pushed.

    `verdict` "warn" takes warnings, too.  `stage` demands that the suite is due then or later ("commit" < "push" <
    "release"); a suite of stage "release" runs on every example.
    """

    suite: str
    verdict: OneOf["pass", "warn"] = "pass"
    stage: OneOf["commit", "push", "release"] = "commit"


class ApprovalRule(_Rule, frozen=True, kw_only=True):
    """Whose signed approval changes of the kinds `of` need; nobody's when `by` is empty."""

    by: tuple[str, ...] = ()
    of: tuple[ApprovalKind, ...] = APPROVAL_KINDS


class OverrideRule(_Rule, frozen=True, kw_only=True):
    """Who may let an update in all the same, by signing a reason."""

    by: tuple[str, ...] = ()


class RefPolicy(_Rule, frozen=True, kw_only=True):
    """What an update of a branch that matches one of `branches`, or of a tag that matches one of `tags`, needs.

    Without `branches` it is about `main`, and about no branch where it names `tags`.
    `require` lists suites; each needs a record about the pushed weights, signed by one of `signers` (principals of
    `evals/allowed_signers`; empty: anybody that this file lists), against the tip that is replaced (of a tag: against
    the newest protected tag behind it) unless `baseline_must_be` is "any".  `skip_if_weights_unchanged` exempts updates
    of branches that change neither weights nor gate.
    `max_patch_bytes` is about what the new commits store, `max_model_bytes` about the files of the model,
    `max_changed` about the share of values that differ; `exact` refuses commits of lossy patches.  Without
    `allow_rewrite` a branch is neither moved back or aside nor deleted, and a tag neither moved nor deleted.
    """

    branches: tuple[str, ...] | None = None
    tags: tuple[str, ...] = ()
    require: tuple[Requirement, ...] = ()
    signers: tuple[str, ...] = ()
    baseline_must_be: OneOf["tip", "any"] = "tip"
    skip_if_weights_unchanged: bool = True
    max_patch_bytes: Bytes | None = None
    max_model_bytes: Bytes | None = None
    max_changed: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    exact: bool = False
    allow_rewrite: bool = False
    approval: ApprovalRule = ApprovalRule()
    override: OverrideRule = OverrideRule()

    def protects(self, ref: str) -> bool:
        """Whether it holds for a ref by its full name (`heads/main`, `tags/v1.0`)."""
        name = short_ref(ref)
        if ref.startswith(TAGS):
            return any(fnmatchcase(name, pattern) for pattern in self.tags)
        branches = self.branches
        if branches is None:
            branches = () if self.tags else ("main",)
        return any(fnmatchcase(name, pattern) for pattern in branches)
