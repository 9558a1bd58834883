"""An exported checkpoint is, to transformers, the model that it was made from.

usage: transformers_load.py [HF_DIR]      (default: ../shared/data/stories260K/hf; ENGINE names the program)

Imports HF_DIR, exports it in f32, and loads both with transformers: no missing, unexpected or mismatched key, no
warning, the same logits to 1e-5, and the same tensors bit for bit. The bf16 export is the nearest bf16, and loads too.
Needs the packages of tests/golden/requirements.txt.
"""
import logging, os, pathlib, subprocess, sys, tempfile
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENGINE = os.environ.get("ENGINE", str(ROOT / "target/release/swallow-engine"))
SAID = []


class Listener(logging.Handler):
    """Everything that transformers says at warning level or above."""

    def emit(self, record):
        SAID.append(record.getMessage())


def engine(*args):
    subprocess.run([ENGINE, *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def load(path):
    """The model, which must load without a warning."""
    SAID.clear()
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    wrong = {k: v for k, v in info.items() if v}
    assert not wrong, f"{path}: {wrong}"
    assert not SAID, f"{path}: transformers warns: {SAID}"
    return model.eval()


def main(source):
    ids = torch.randint(0, 100, (2, 64), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
        tmp = pathlib.Path(tmp)
        engine("checkpoint", "import", "--from", source, "--to", tmp / "run")
        engine("checkpoint", "export", "--from", tmp / "run", "--to", tmp / "hf", "--dtype", "f32")
        engine("checkpoint", "export", "--from", tmp / "run", "--to", tmp / "bf16", "--dtype", "bf16")
        a, b = load(source), load(tmp / "hf")
        off = (a(input_ids=ids).logits - b(input_ids=ids).logits).abs().max().item()
        assert off < 1e-5, f"logits differ by {off}"
        x, y = load_file(pathlib.Path(source) / "model.safetensors"), load_file(tmp / "hf/model.safetensors")
        assert x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x), "tensors differ"
        half = load_file(tmp / "bf16/model.safetensors")
        assert all(torch.equal(x[n].bfloat16(), half[n]) for n in x), "bf16 is not the nearest"
        load(tmp / "bf16")
        print(f"{source}: {len(x)} tensors bit for bit, logits differ by {off:.1e}, nothing missing or unexpected")


if __name__ == "__main__":
    hf_logging.get_logger("transformers").addHandler(Listener(logging.WARNING))
    main(*sys.argv[1:] or [ROOT.parent / "shared/data/stories260K/hf"])
