"""Piper: VITS voices on ONNX Runtime."""
