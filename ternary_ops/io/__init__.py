# SPDX-License-Identifier: Apache-2.0
"""Files: the container every kind of file shares, and what is written about their sizes.

container   one safetensors file, a JSON index and one entropy-coded payload; NumPy only
sizes       bytes of a file against float32, 2 bits a weight, and the entropy bound; NumPy only
weights     kind "weights": save and load of packed networks; needs torch

The format is docs/formats.md.
"""
