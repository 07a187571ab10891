"""How a photograph lies in a body that is no form: as the body itself, or in JSON, in base64."""

import binascii
import re

import pybase64
from pydantic import BaseModel, Field, ValidationError

from droneseg.core.errors import BrokenImageError, MalformedRequestError, MissingInputError, WrongContentTypeError
from droneseg.core.images import EMPTY

_BYTES = ("application/octet-stream", "text/plain")  # the second is what BentoML's client says of bytes
_JSON = "application/json"
_BASE64 = re.compile(r"^[A-Za-z0-9+/]*=*\Z")
_MOST_PARTS = 64  # base64 has none of their signs, and a tree of millions takes a hundred times its bytes


class Base64Image(BaseModel):
    """A photograph in JSON."""

    image_b64: str = Field(description="The file, in base64.")
    content_type: str = Field("image/jpeg", description="Its media type; what it is, is seen from its bytes.")


class Base64Request(BaseModel):
    """The body of `/predict_base64`."""

    req: Base64Image


def from_image(content_type: str, body: bytes) -> bytes:
    """Return a body that is the file.

    Raises:
        WrongContentTypeError: If it says to be something else.
        BrokenImageError: If it is empty.
    """
    if content_type and not content_type.startswith("image/") and content_type not in _BYTES:
        raise WrongContentTypeError(f"Send the image itself, as image/..., not as {content_type[:40]}.")
    if not body:
        raise BrokenImageError(EMPTY)
    return body


def from_json(content_type: str, body: bytes) -> bytes:
    """Return the file that lies in JSON, see `Base64Request`.

    Raises:
        WrongContentTypeError: If the body or the file says to be something else.
        MalformedRequestError: If the body is no JSON, or the file not base64 to the letter.
        MissingInputError: If a field is missing or wrong.
    """
    if content_type != _JSON:
        raise WrongContentTypeError(f"Send {_JSON}.")
    if sum(body.count(sign) for sign in b"[{,") > _MOST_PARTS:
        raise MalformedRequestError("The JSON has more parts than a photograph needs.")
    try:
        image = Base64Request.model_validate_json(body).req
    except ValidationError as error:
        # without the input, which may be 30 MB
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if problems[0]["type"] == "json_invalid":
            raise MalformedRequestError("The body is no JSON.") from error
        said = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in problems]
        raise MissingInputError("; ".join(said)) from error
    if not image.content_type.lower().startswith("image/"):
        raise WrongContentTypeError(f"content_type is {image.content_type[:40]!r}; send an image.")
    try:
        # forty times as fast as Python's decoder, which also lets some wrong padding pass
        return pybase64.b64decode(image.image_b64, validate=True)
    except (binascii.Error, ValueError) as error:
        wrong = (
            "its padding is wrong" if _BASE64.match(image.image_b64) else "it has other characters, such as line breaks"
        )
        raise MalformedRequestError(f"image_b64 is not base64: {wrong}.") from error
