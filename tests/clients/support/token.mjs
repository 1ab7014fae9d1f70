// JSON Web Tokens, minted as an application mints them, without a library.

import { createHmac } from "node:crypto"

const HASHES = { HS256: "sha256", HS512: "sha512" }

/** Mints a token with `claims`, which is valid for an hour unless they have an `exp`. */
export function mint(claims, secret, alg = "HS256") {
  const exp = Math.floor(Date.now() / 1000) + 3600
  const signed = [{ alg, typ: "JWT" }, { exp, ...claims }].map(encode).join(".")
  return `${signed}.${createHmac(HASHES[alg], secret).update(signed).digest("base64url")}`
}

/** The `s_csrf` claim that binds a token to `csrf`. */
export function csrfSignature(csrf, secret) {
  return createHmac("sha256", secret).update(csrf).digest("base64url")
}

function encode(part) {
  return Buffer.from(JSON.stringify(part)).toString("base64url")
}
