# SPDX-License-Identifier: Apache-2.0
"""The whole path in one file: train, prune and ternarize, compile, save, run without torch.

python examples/compress.py
"""

import torch
from sklearn.datasets import load_digits

import ternary_ops as tops
from ternary_ops.models import digits_resnet

EPOCHS, BATCH = 8, 64

torch.manual_seed(0)
digits, labels = load_digits(return_X_y=True)
x = torch.tensor(digits, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)

model = digits_resnet(width=16)
tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.8)))

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
steps = EPOCHS * (len(x) // BATCH)
pruner = tops.prune.Pruner(model, schedule="one_cycle", total_steps=steps, optimizer=optimizer)
for _ in range(steps):
    chosen = torch.randint(0, len(x), (BATCH,))
    loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    pruner.step()

model.eval()
tops.calibrate(model, [x[:256]])
program = tops.compile(model, x[:1])
program.save("digits.safetensors")
print(tops.report(program, x[:1]))

logits = tops.runtime.load("digits.safetensors")(x.numpy())  # this line needs no torch
print(f"right on the images it learned: {(logits.argmax(1) == labels).mean():.1%}")
