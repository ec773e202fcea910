# cluster default, namespace platform
#
# The least policy that vault-kms-proxy works with; it prints it. To write it:
#
#   vault policy write -namespace=platform vault-kms-proxy FILE
#
# It never grants `create`: with that, an encrypt with a misspelt name makes a new
# key. Give the login a token_period (or ttl) that outlasts the longest outage to be
# survived: nodes without a quorum encrypt and decrypt, but they log nobody in.

# KEK kube-2026: encrypt, decrypt, and see which versions there are.
path "transit/encrypt/kube-2026" {
  capabilities = ["update"]
}
path "transit/decrypt/kube-2026" {
  capabilities = ["update"]
}
path "transit/keys/kube-2026" {
  capabilities = ["read"]
}

# KEK kube-2025: encrypt, decrypt, and see which versions there are.
path "transit/encrypt/kube-secret-enc-key" {
  capabilities = ["update"]
}
path "transit/decrypt/kube-secret-enc-key" {
  capabilities = ["update"]
}
path "transit/keys/kube-secret-enc-key" {
  capabilities = ["read"]
}

# The token's own life. Vault's `default` policy grants it too; it stands here for tokens
# without that.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}

# Gives back the token of a rehearsed login at once.
path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# Shows, before a login is rehearsed, that it costs no use of a limited secret ID. Only
# who knows a secret ID can ask about it.
path "auth/approle/role/+/secret-id/lookup" {
  capabilities = ["update"]
}

# Lets the daemon and `check --online` see a policy that is too narrow or too wide.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
