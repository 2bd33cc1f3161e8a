"""docs/training.md: both scripts run as they stand, and everything that the page says of them is so."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelgit.cli.main import main
from modelgit.repo import Repository

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
SETTINGS = """
[task.intents]
model = "models/bot"
kind = "sequence-classification"
labels = ["no", "yes"]
train = "data/train.jsonl"
max_length = 8
"""
WORDS = ("[PAD]", "[UNK]", "refund", "order", "please", "never", "late", "thanks")


def scripts() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(repo: Repository) -> Repository:
    """A tiny classifier with a tokenizer, texts and a task."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, num_labels=2, **sizes)
    place = repo.worktree / "models" / "bot"
    transformers.BertForSequenceClassification(config).save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    draw = np.random.default_rng(0)
    texts = [" ".join(WORDS[2 + at] for at in draw.integers(0, 6, 5)) for _ in range(40)]
    rows = [json.dumps({"text": text, "label": int("refund" in text)}) for text in texts]
    (repo.worktree / "data").mkdir()
    (repo.worktree / "data" / "train.jsonl").write_text("\n".join(rows))
    repo.track("models/bot")
    settings = repo.worktree / "mgit.toml"
    settings.write_text(settings.read_text() + SETTINGS)
    repo.forget_settings()
    repo.commit("Base model")
    return repo


@pytest.mark.parametrize("number", [0, 1])
def test_the_scripts_run(shop: Repository, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def mgit(*words: str) -> str:
        capsys.readouterr()
        code = main(["-C", str(shop.worktree), *words], values={"HOME": str(tmp_path), "MGIT_AUTHOR": "A <a@b.c>"})
        out, err = capsys.readouterr()
        assert code == 0, (words, out, err)
        return out + err

    mgit("mask", "create", "--density", "5%")
    script = scripts()[number].replace("/tmp/refunds", str(tmp_path / "out"))
    (shop.worktree / "train.py").write_text(script)
    done = subprocess.run([sys.executable, "train.py"], cwd=shop.worktree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = 9 if number == 0 else 15
    assert f"{steps} of {steps} steps checked" in mgit("mask", "verify", "latest", "--run", "run.journal")
    if number == 0:
        assert "models/bot" in mgit("status")
        mgit("commit", "--mask", "latest", "-m", "refunds: tune tone of denials")
        assert "1 commit checked" in mgit("mask", "verify", "latest")
    else:
        messages = [shop.commit_at(shop.resolve(f"HEAD~{back}")).message for back in range(5)]
        assert messages == [*(f"refunds, step {step}" for step in (15, 12, 8, 4)), "Base model"]
        assert "4 commits checked" in mgit("mask", "verify", "latest", "HEAD~4..HEAD")
        assert "2 checkpoints" in mgit(
            "mask", "verify", "latest", *(str(tmp_path / "out" / f"checkpoint-{step}") for step in (4, 15))
        )
