"""Writes golden.safetensors: MXFP4 blocks and scales, and the numbers that transformers makes of them. Every scale is there with all 16 codes.

python make.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

E, ROWS, GROUPS = 2, 8, 16  # 256 blocks
block = torch.arange(E * ROWS * GROUPS).reshape(E, ROWS, GROUPS, 1)
i = torch.arange(16)
blocks = ((i + block) % 16 | (3 * i + 5 + block) % 16 << 4).to(torch.uint8)
scales = (block[..., 0] * 37 % 256).to(torch.uint8)
values = convert_moe_packed_tensors(blocks, scales)  # [E, in, out], bf16
save_file(dict(blocks=blocks, scales=scales, values=values.contiguous()), Path(__file__).parent / "golden.safetensors")
