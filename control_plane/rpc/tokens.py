"""TokenService."""

from __future__ import annotations

from typing import Any

from control_plane.model import RateLimit, Role
from control_plane.rpc import convert
from control_plane.service.tokens import NewToken, Tokens
from pointsman.v1 import tokens_pb2 as pb
from pointsman.v1 import tokens_pb2_grpc


class TokenServicer(tokens_pb2_grpc.TokenServiceServicer):
    """Converts between messages and service.tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        """See tokens.proto."""
        limit = request.rate_limit
        wanted = NewToken(
            name=request.name,
            role=Role(pb.Token.Role.Name(request.role)),
            apps=tuple(request.apps),
            environments=tuple(request.environments),
            endpoints=tuple(request.endpoints),
            rate_limit=RateLimit(requests_per_second=limit.requests_per_second, burst=limit.burst)
            if request.HasField("rate_limit")
            else None,
            expire_time=convert.moment(request, "expire_time"),
        )
        token, secret = await self._tokens.create(wanted, convert.call_of(request, context))
        return pb.CreateTokenResponse(token=convert.token(token), secret=secret)

    async def ListTokens(self, request: pb.ListTokensRequest, _context: Any) -> pb.ListTokensResponse:
        """See tokens.proto."""
        page = await self._tokens.list(convert.page_of(request))
        return pb.ListTokensResponse(tokens=map(convert.token, page.items), next_page_token=page.next_page_token)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.RevokeTokenResponse:
        """See tokens.proto."""
        token, rollout = await self._tokens.revoke(request.token_id, convert.call_of(request, context))
        response = pb.RevokeTokenResponse(token=convert.token(token))
        if rollout is not None:
            response.rollout.CopyFrom(convert.rollout(rollout))
        return response
