"""Images: offered by their manifest, then streamed in. The manifest is judged before the first byte of the file is read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post, put
from litestar.exceptions import InternalServerException
from litestar.params import HeaderParameter, JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT

from fleetd.api import auth, paging, params, views
from fleetd.api.conditions import etag
from fleetd.api.state import Desks, desks
from fleetd.kit.errors import Invalid
from fleetd.kit.tasks import unless_stopping
from fleetd.model.bootresource import ImageCheckView, ImageOfferView, ImageView
from fleetd.model.image import MAX_IMAGE, MAX_MANIFEST, Image, SignedManifest, read_manifest
from fleetd.model.resource import Page

Req = Request[Any, Any, Any]
MANIFEST_HEADER = "Fleetd-Manifest"
ManifestHeader = Annotated[
    str,
    HeaderParameter(
        name=MANIFEST_HEADER,
        description="The signed manifest, as base64url of its JSON.",
        max_length=MAX_MANIFEST * 4 // 3 + 4,
    ),
]


async def _view(state: Desks, image: Image) -> ImageView:
    users = await state.services.images.users()
    return views.image(image, users.get(image.manifest.name, []))


def _manifest(text: str) -> SignedManifest:
    """Raises Invalid."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise Invalid("the manifest is no base64url", why=str(error)[:200], where=MANIFEST_HEADER) from error
    return read_manifest(raw)


@get("/v1/images", guards=[auth.viewer])
async def list_images(
    request: Req, limit: params.Limit = paging.DEFAULT_LIMIT, cursor: params.Cursor = None
) -> Page[ImageView]:
    """All images by name, each with who needs it."""
    state = desks(request)
    found = await state.services.images.every()
    page, following = paging.page(found, lambda image: (image.manifest.name,), limit=limit, cursor=cursor)
    users = await state.services.images.users()
    return Page(items=[views.image(image, users.get(image.manifest.name, [])) for image in page], next=following)


@post("/v1/images", status_code=HTTP_200_OK, guards=[auth.operator], opt={"reads": True})
async def offer_image(request: Req, data: JSONBody[SignedManifest]) -> ImageOfferView:
    """Ask by its manifest whether an image is welcome, before it is sent: signature, name and room are judged.

    Nothing is changed. `needed`: send the file to `upload` by PUT; else the very image is there already.
    """
    state = desks(request)
    known = await state.services.images.offer(data)
    name = data.manifest.name
    return ImageOfferView(
        name=name,
        needed=known is None,
        upload=f"/v1/images/{name}/content",
        image=None if known is None else await _view(state, known),
    )


@put("/v1/images/{name:str}/content", status_code=HTTP_200_OK, guards=[auth.operator], opt={"max_body": MAX_IMAGE})
async def upload_image(request: Req, name: params.Name, manifest: ManifestHeader) -> Response[ImageView]:
    """Send the file, as a plain stream of bytes. It is answered when both digests were proven and it is kept.

    The same image once more changes nothing. At most as many bytes are taken as the manifest says, and not slower than
    64 KiB/s on average. A qcow2 file (its manifest: `source_sha256` equals `sha256`) is converted to raw.zst.
    """
    state = desks(request)
    signed = _manifest(manifest)
    if signed.manifest.name != name:
        raise Invalid("the manifest is of another image", why=f"it says {signed.manifest.name}", where=MANIFEST_HEADER)
    image = await unless_stopping(state.stopping, state.services.images.add(signed, _stream(request), who=request.user))
    return Response(await _view(state, image), headers={"ETag": etag(image.version)})


async def _stream(request: Req) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except InternalServerException as error:  # Litestar's word for a caller that hung up
        raise Invalid("the stream ended in the middle", where="body", remedy="send it again") from error


@get("/v1/images/{name:str}", guards=[auth.viewer])
async def get_image(request: Req, name: params.Name) -> Response[ImageView]:
    """One image."""
    state = desks(request)
    image = await state.services.images.show(name)
    return Response(await _view(state, image), headers={"ETag": etag(image.version)})


@post("/v1/images/{name:str}/verify", status_code=HTTP_200_OK, guards=[auth.operator])
async def verify_image(request: Req, name: params.Name) -> ImageCheckView:
    """Read the file anew and compare both digests; answered when it is read, which takes a large one minutes."""
    state = desks(request)
    image, problems = await unless_stopping(state.stopping, state.services.images.verify(name, who=request.user))
    return ImageCheckView(name=image.manifest.name, good=not problems, problems=problems)


@delete("/v1/images/{name:str}", status_code=HTTP_204_NO_CONTENT, guards=[auth.operator])
async def remove_image(request: Req, name: params.Name) -> None:
    """Remove it; 409 while a SKU, a lease or a run needs it."""
    await desks(request).services.images.remove(name, who=request.user)


HANDLERS = [list_images, offer_image, upload_image, get_image, verify_image, remove_image]
