"""What the OpenAPI document says of multipart bodies, which are read by hand."""

from __future__ import annotations

CLASS_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "photo": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                        "class": {"type": "string"},
                        "noun": {"type": "string"},
                        "bundle": {"type": "string"},
                    },
                    "required": ["photo", "class"],
                }
            }
        },
    }
}
PHOTO_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "photo": {"type": "string", "format": "binary"},
                        "class": {"type": "string"},
                        "bundle": {"type": "string"},
                        "outputs": {"type": "string"},
                        "deadline_ms": {"type": "string"},
                        "full": {"type": "string", "enum": ["true", "false"]},
                        "request_key": {"type": "string"},
                    },
                    "required": ["photo"],
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
BATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "photo": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                        "class": {"type": "array", "items": {"type": "string"}},
                        "bundle": {"type": "string"},
                        "outputs": {"type": "string"},
                        "deadline_ms": {"type": "string"},
                        "full": {"type": "string", "enum": ["true", "false"]},
                    },
                    "required": ["photo"],
                }
            }
        },
    }
}
