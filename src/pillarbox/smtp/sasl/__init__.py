"""AUTH exchanges (RFC 4422, RFC 4954), a file a family of mechanisms; `mechanisms` names them all."""
