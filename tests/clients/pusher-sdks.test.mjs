// Pusher's server SDKs as npm and PyPI publish them, and Ruby by the signing rules of the gem, against a running Herald.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import Pusher from "pusher"
import { Client } from "./support/client.mjs"
import { LATEST } from "./support/generations.mjs"
import { ADMIN, Herald, TEST_APP } from "./support/herald.mjs"
import { mint } from "./support/token.mjs"
import { DEADLINE_MS } from "./support/wait.mjs"

const HERE = path.dirname(fileURLToPath(import.meta.url))
const PYTHON = process.env.HERALD_PYTHON ?? "python3"

describe("Pusher's server SDKs", () => {
  let herald
  let appId
  before(async () => {
    herald = await Herald.start()
    appId = String((await herald.ask("GET", `/api/admin/apps/${TEST_APP.slug}`, ADMIN)).data.id)
  })
  after(() => herald?.close())

  const sdk = options =>
    new Pusher({ appId, key: TEST_APP.key, secret: TEST_APP.secret, host: "127.0.0.1", port: String(herald.port), useTLS: false, ...options })

  test("npm's pusher triggers, also in batches and for a user", async t => {
    const { inbox } = await connect(t, herald).joined("public:test-app:room", { events: ["msg", "one", "two"] })
    const pusher = sdk()
    assert.equal((await pusher.trigger(["room", "private-room"], "msg", { message: "Grüße" })).status, 200)
    assert.deepEqual(await inbox.take(), { event: "msg", payload: { message: "Grüße" } })
    await pusher.trigger("room", "msg", "just text")
    assert.deepEqual(await inbox.take(), { event: "msg", payload: { data: "just text" } })
    await pusher.trigger("room", "msg", { n: 1 }, { socket_id: "1234.1234" })
    assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
    const answer = await pusher.trigger("room", "msg", {}, { info: "subscription_count" })
    assert.deepEqual(await answer.json(), { channels: { room: { subscription_count: 1 } } })
    await inbox.take()
    await pusher.triggerBatch([
      { channel: "room", name: "one", data: { n: 1 } },
      { channel: "room", name: "two", data: { n: 2 } },
    ])
    assert.deepEqual(await inbox.take(), { event: "one", payload: { n: 1 } })
    assert.deepEqual(await inbox.take(), { event: "two", payload: { n: 2 } })
    assert.equal((await pusher.sendToUser("12345", "msg", { for: "one" })).status, 200)
    assert.equal((await pusher.terminateUserConnections("12345")).status, 200)
    await pusher.trigger("room", "msg", { n: 2 })
    assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 2 } }, "no event for the user came before it")
  })

  test("npm's pusher asks about channels", async t => {
    await present(t, herald, "u1")
    await present(t, herald, "u1")
    const pusher = sdk()
    const asked = async (path, params = {}) => (await pusher.get({ path, params })).json()
    assert.deepEqual(await asked("/channels"), { channels: { "presence-team": {} } })
    const params = { filter_by_prefix: "presence-", info: "user_count,subscription_count" }
    assert.deepEqual(await asked("/channels", params), { channels: { "presence-team": { user_count: 1, subscription_count: 2 } } })
    assert.deepEqual(await asked("/channels/presence-team", { info: "user_count" }), { occupied: true, user_count: 1 })
    assert.deepEqual(await asked("/channels/presence-team/users"), { users: [{ id: "u1" }] })
  })

  test("npm's pusher encrypts, and a Phoenix client receives ciphertext and nonce", async t => {
    const token = mint({ listen: ["private:test-app:encrypted-room"] }, TEST_APP.secret)
    const { inbox } = await connect(t, herald).joined("private:test-app:encrypted-room", { payload: { guardian_token: token }, events: ["msg"] })
    const encryptionMasterKeyBase64 = Buffer.alloc(32, 7).toString("base64")
    await sdk({ encryptionMasterKeyBase64 }).trigger("private-encrypted-room", "msg", { secret: 1 })
    const { payload } = await inbox.take()
    assert.deepEqual(Object.keys(payload).sort(), ["ciphertext", "nonce"])
  })

  test("npm's pusher is told what is wrong", async () => {
    const refused = async call => {
      const { status, body } = await call.then(() => assert.fail("it was accepted"), error => error)
      return { status, body: body.trim() }
    }
    const wrong = await refused(sdk({ secret: "wrong" }).trigger("room", "msg", {}))
    assert.equal(wrong.status, 401)
    assert.match(wrong.body, /^auth_signature is not the HMAC-SHA256 in hex, by the secret of auth_key, of "POST\\n/)
    assert.equal((await refused(sdk({ key: "unknown" }).trigger("room", "msg", {}))).status, 401)
    assert.equal((await refused(sdk({ appId: "999999" }).trigger("room", "msg", {}))).status, 404)
    const large = await refused(sdk().trigger("room", "msg", "x".repeat(10_241)))
    assert.deepEqual(large, { status: 413, body: "The data content of this event exceeds the allowed maximum (10240 bytes)" })
    const events = Array.from({ length: 11 }, () => ({ channel: "room", name: "msg", data: "x" }))
    assert.match((await refused(sdk().triggerBatch(events))).body, /^Batch too large/)
    await herald.updateApp(TEST_APP.slug, { pusher: false })
    assert.equal((await refused(sdk().trigger("room", "msg", {}))).status, 403)
    await herald.updateApp(TEST_APP.slug, { pusher: true })
  })

  test("PyPI's pusher triggers, asks and terminates, although it calls another path for the last", async t => {
    await vacant(herald)
    const { inbox } = await connect(t, herald).joined("public:test-app:room", { events: ["msg", "one", "two"] })
    await present(t, herald, "u1")
    const env = { PUSHER_APP_ID: appId, PUSHER_KEY: TEST_APP.key, PUSHER_SECRET: TEST_APP.secret, PUSHER_HOST: "127.0.0.1", PUSHER_PORT: String(herald.port) }
    const [line] = await run(PYTHON, path.join(HERE, "python/pusher_calls.py"), env)
    assert.deepEqual(JSON.parse(line), {
      trigger: {},
      text: {},
      socket_id: {},
      batch: {},
      send_to_user: {},
      channels: { channels: { "presence-team": {}, room: {} } },
      presence: { channels: { "presence-team": { user_count: 1 } } },
      channel: { occupied: true, user_count: 1 },
      users: { users: [{ id: "u1" }] },
      terminate: {},
      not_presence: ["PusherBadRequest", "users exist on presence channels only"],
      wrong_info: ["PusherBadRequest", "user_count exists for presence channels only"],
      wrong_secret: "PusherBadAuth",
    })
    const expected = [
      ["msg", { message: "Grüße" }],
      ["msg", { data: "just text" }],
      ["msg", { n: 1 }],
      ["one", { n: 1 }],
      ["two", { n: 2 }],
    ]
    for (const [event, payload] of expected) assert.deepEqual(await inbox.take(), { event, payload })
  })

  test("calls from Ruby that are signed as the gem signs them are answered", async t => {
    await vacant(herald)
    const { inbox } = await connect(t, herald).joined("public:test-app:room", { events: ["msg"] })
    await present(t, herald, "u1")
    const env = { PUSHER_URL: herald.host, PUSHER_APP_ID: appId, PUSHER_KEY: TEST_APP.key, PUSHER_SECRET: TEST_APP.secret }
    const lines = await run("ruby", path.join(HERE, "ruby/pusher_signed.rb"), env)
    const accepted = [
      {},
      { batch: [{ subscription_count: 1 }] },
      { channels: { "presence-team": { user_count: 1, subscription_count: 1 } } },
      { occupied: true, subscription_count: 1 },
      { users: [{ id: "u1" }] },
      { channels: { "presence-team": {}, room: {} } },
    ]
    for (const answer of accepted) {
      assert.equal(lines.shift(), "200")
      assert.deepEqual(JSON.parse(lines.shift()), answer)
    }
    assert.equal(lines.shift(), "401")
    assert.deepEqual(await inbox.take(), { event: "msg", payload: { message: "Grüße aus Ruby" } })
  })
})

/** A client that disconnects at the end of its test. */
function connect(t, herald) {
  const client = new Client(LATEST, herald)
  t.after(() => client.disconnect())
  return client
}

/** Waits until the server has noticed that the clients of the tests before have left. */
async function vacant(herald) {
  const channels = [["public", "room"], ["presence", "team"], ["private", "encrypted-room"]]
  for (const [scope, channel] of channels) await herald.hasSubscribers(0, { scope, channel })
}

/** A member of the channel `presence-team`, which leaves at the end of its test. */
async function present(t, herald, sub) {
  const token = mint({ sub, listen: ["presence:test-app:team"] }, TEST_APP.secret)
  await connect(t, herald).joined("presence:test-app:team", { payload: { guardian_token: token } })
}

/** Runs a script and returns the lines that it prints. */
function run(program, script, env) {
  const options = { env: { PATH: process.env.PATH, LANG: "C.UTF-8", ...env }, timeout: DEADLINE_MS }
  return new Promise((resolve, reject) => {
    execFile(program, [script], options, (error, printed, complained) => {
      if (error) reject(new Error(`${program} ${script} failed: ${error.message}\n${complained}`))
      else resolve(printed.trimEnd().split("\n"))
    })
  })
}
