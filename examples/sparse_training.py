# SPDX-License-Identifier: Apache-2.0
"""Sparse from the first step: a network that never has more than a tenth of its weights (RigL).

python examples/sparse_training.py
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
config = tops.TernaryConfig("int8", zeros=0.9, scope="erk")  # 90 % of the quads are empty
tops.quantize_(model, tops.plan(model, config))

optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
steps = EPOCHS * (len(x) // BATCH)
growth = tops.prune.Growth(drop="magnitude", grow="rigl", every=10, until=0.7, fraction=0.3)
pruner = tops.prune.Pruner(model, total_steps=steps, optimizer=optimizer, growth=growth)
for step in range(steps):
    chosen = torch.randint(0, len(x), (BATCH,))
    loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    pruner.step()
    if step % 50 == 0:
        print(f"step {step}: {pruner.zeros:.1%} of the quads are empty, loss {loss.item():.2f}")

model.eval()
tops.calibrate(model, [x[:256]])
program = tops.compile(model, x[:1])
program.save("digits.safetensors")
print(tops.report(program, x[:1]))

logits = tops.runtime.load("digits.safetensors")(x.numpy())  # this line needs no torch
print(f"right on the images it learned: {(logits.argmax(1) == labels).mean():.1%}")
