# The smallest policy that vault-kms-proxy works with, for a Transit engine mounted at
# `transit` and the keys `kube-2026` and `kube-secret-enc-key`. Write it for your own:
#
#   vault policy write vault-kms-proxy policy.hcl
#   vault write auth/approle/role/vault-kms-proxy token_policies=vault-kms-proxy \
#       token_period=24h
#
# A token's ttl must outlast the longest outage of Vault that the control plane shall
# survive: nodes without a quorum still encrypt and decrypt, but they log nobody in.

# `update` and never `create`: with `create`, an encrypt with a misspelt name makes a new
# key instead of failing.
path "transit/encrypt/kube-2026" {
  capabilities = ["update"]
}
path "transit/encrypt/kube-secret-enc-key" {
  capabilities = ["update"]
}

path "transit/decrypt/kube-2026" {
  capabilities = ["update"]
}
path "transit/decrypt/kube-secret-enc-key" {
  capabilities = ["update"]
}

# Versions and their creation times: they decide which version encrypts and what key_id
# says.
path "transit/keys/kube-2026" {
  capabilities = ["read"]
}
path "transit/keys/kube-secret-enc-key" {
  capabilities = ["read"]
}

# The token's own life. Vault's `default` policy grants these already; they stand here
# for tokens without it.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}

# Lets the daemon see, before it rehearses a login, that this costs no use of a limited
# secret id. Only whoever knows a secret id can ask about it.
path "auth/approle/role/+/secret-id/lookup" {
  capabilities = ["update"]
}

# Gives back the token of a rehearsed login at once. In Vault's `default` policy, too.
path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# Lets `check --online` and the daemon find a policy that is too narrow or too wide.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
