"""The steps of a run: what each does, and the exact command that does it."""

from __future__ import annotations

from dataclasses import dataclass

CARRIED = "build/gpu-step"  # ignored by git; refilled for every step
STORE = '"$HOME/sts-gpu"'  # outlives a call, unlike the tree, the carried folder and $OUT
_LEAVE_S = 40  # of its limit, that a run leaves for what comes after it
_OUTER_S = 60  # more than its limit, that a call needs for copying and unpacking


@dataclass(frozen=True)
class Step:
    """One call.

    Args:
        name: of its log.
        arguments: of scripts/gpu/run.
        expected_s: a guess for an H100.
        limit_s: after which it is stopped.
        imports: have Python import the large packages beside it: reading them for the first time takes long.
    """

    name: str
    arguments: str
    expected_s: int
    limit_s: int
    imports: bool = False

    @property
    def timeout_s(self) -> int:
        """For whoever runs the command."""
        return self.limit_s + _OUTER_S


STEPS = (
    Step("kernels", "--parts kernels", 210, 400, imports=True),
    Step("sanitize", "--parts sanitize", 220, 500),
    Step("profile", "--parts profile", 80, 200),
    Step("smoke", "--parts smoke", 110, 300),
    Step("llava-1.5-7b", "--parts end-to-end --shapes llava-1.5-7b --label llava-1.5-7b", 250, 500),
    Step("llava-next-7b", "--parts end-to-end --shapes llava-next-7b --label llava-next-7b", 330, 540),
    Step("ab", "--parts ab --shapes llava-next-7b", 150, 400),
    Step("qwen2.5-vl-7b", "--parts end-to-end --shapes qwen2.5-vl-7b --label qwen2.5-vl-7b", 250, 500),
)


def command(step: Step, commit: str) -> str:
    """The whole command, to be run in the root of the tree.

    Args:
        commit: of the tree, which git does not know there.
    """
    warm = " --imports" if step.imports else ""
    return f"{bring(step, commit)} --limit {step.limit_s}{warm} -- {step.arguments} --time-limit {step.limit_s - _LEAVE_S}"


def bring(step: Step, commit: str) -> str:
    """The command that stores and unpacks what is carried and runs nothing: for a machine that was lost after this step."""
    return f'python3 scripts/gpu/carry/there.py {step.name} --carried {CARRIED} --store {STORE} --out "$OUT" --commit {commit}'
