"""`show`: the picture of what was kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from sts_export.cli import main
from tests.cli.helpers import Work, tree


def test_show_writes_a_picture(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    output = work.folder / "kept.png"
    argv = ["show", work.bundle, "--image", work.picture, "--prompt", "What is it?", "-o", str(output)]
    assert main([*argv, "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 36 -> 18 -> 6 visual tokens; answer:")
    with Image.open(output) as picture:
        assert picture.size == (168, 168)  # 84 pixels, doubled
        pixels = picture.convert("RGB")
        frames = sum(pixels.getpixel((28 * x, 28 * y)) == (255, 210, 0) for x in range(6) for y in range(6))
    assert frames == 6
    assert tree(work.folder) == {"kept.png"}


@pytest.mark.parametrize(("answer", "printed"), [(" x" * 500, "x " * 99 + "x..."), ("y" * 200, "y" * 200)])
def test_long_answers_are_cut(
    work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str, printed: str
) -> None:
    result = SimpleNamespace(text=answer, visual_tokens=SimpleNamespace(total=36, stage1=18, stage2=6))
    monkeypatch.setattr("sts_export.analysis.picture.save_kept_picture", lambda *_: result)
    assert main(work.show()) == 0
    assert capsys.readouterr().out.removesuffix("\n").split("answer: ")[1] == printed
