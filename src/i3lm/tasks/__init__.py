"""Evaluation by tasks of lm-evaluation-harness. The task files (`*.yaml`) lie beside this file."""
