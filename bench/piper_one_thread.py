"""Piper's own command line, with one inference thread: ``python -m bench.piper_one_thread ...``.

It has no option for that, and on one core its second thread only gets in the way of the first.
Nothing else is changed.
"""

import runpy

import onnxruntime

_AsItComes = onnxruntime.SessionOptions


def _one_thread() -> onnxruntime.SessionOptions:
    options = _AsItComes()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return options


if __name__ == "__main__":
    onnxruntime.SessionOptions = _one_thread
    runpy.run_module("piper", run_name="__main__", alter_sys=True)
