"""What stands in paths and queries, typed, bounded and described once for all routes."""

from __future__ import annotations

from typing import Annotated

from litestar.params import PathParameter, QueryParameter

MAX_LIMIT = 1000
MAX_NAME = 200

Ref = Annotated[str, PathParameter(description="A host: its id, name or serial.", max_length=MAX_NAME)]
Name = Annotated[str, PathParameter(description="Its name.", max_length=MAX_NAME)]
Id = Annotated[str, PathParameter(description="Its id.", max_length=MAX_NAME)]
Scope = Annotated[str, PathParameter(description="`all`, `site:NAME` or `rack:NAME`.", max_length=MAX_NAME)]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description=f"Items a page, at most {MAX_LIMIT}.")]
Cursor = Annotated[str | None, QueryParameter(description="`next` of the page before.", max_length=2048)]
Word = Annotated[str | None, QueryParameter(description="Only of this name.", max_length=MAX_NAME)]
Flag = Annotated[bool, QueryParameter()]
