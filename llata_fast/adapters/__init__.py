"""Trained models for other software: PEFT, ONNX, the hub, sktime, gluonts, GIFT-Eval, fev."""
