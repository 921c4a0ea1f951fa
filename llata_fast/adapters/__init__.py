"""Trained models for other software: PEFT adapters, ONNX files."""
