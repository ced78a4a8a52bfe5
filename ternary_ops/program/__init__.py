# SPDX-License-Identifier: Apache-2.0
"""Programs: the graph, its operators, its file, its oracle and the native engine. Never torch."""
