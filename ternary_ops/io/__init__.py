# SPDX-License-Identifier: Apache-2.0
"""Files: what every kind shares (docs/formats.md). NumPy and the native codec only.

container     one safetensors file: a JSON index and one entropy-coded payload
safetensors   its outer layout
sizes         bytes of a file beside float32, 2 bits a weight, and the entropy bound

Kind "program" is written by program.program_file, kind "weights" by quantize.weights_file.
"""
