"""The version of this repository: in exported folders, in model.onnx, and in GET /v2."""

VERSION = '0.2.0'
