"""Messages of protobuf as JSON, so that those of another environment can be compared; run by the Python of both."""


def described(descriptor) -> dict:
    """Number, type, whether it is repeated, and the message, of every field by its name."""
    return {
        field.name: [
            field.number,
            field.type,
            field.is_repeated,
            described(field.message_type) if field.message_type else None,
        ]
        for field in descriptor.fields
    }


def check(official, ours: dict) -> None:
    """Whatever we have of an official message, and of those in it, is the same there."""
    if official.full_name in ours:
        _same(ours[official.full_name], official)


def _same(ours: dict, official) -> None:
    for name, (number, kind, repeated, inner) in ours.items():
        field = official.fields_by_name[name]
        assert [number, kind, repeated] == [field.number, field.type, field.is_repeated], field.full_name
        assert (inner is None) == (field.message_type is None), field.full_name
        if inner is not None:
            _same(inner, field.message_type)
