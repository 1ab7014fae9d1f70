// Herald behind Debian's nginx and HAProxy, configured as in the README.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import WebSocket from "ws"
import { Client } from "./support/client.mjs"
import { DocumentedProxy } from "./support/documented.mjs"
import { LATEST, OLDEST, overEachTransport } from "./support/generations.mjs"
import { Herald, TEST_APP } from "./support/herald.mjs"
import { Proxy } from "./support/proxy.mjs"
import { LOAD_TOPIC, Triggers } from "./support/triggers.mjs"
import { within } from "./support/wait.mjs"

const TRIGGERS = 5000
const CONNECTIONS = 16

/** What the README says about a proxy on the same machine. */
const BEHIND_A_PROXY = { HERALD__SERVER__TRUSTED_PROXIES: "127.0.0.1", HERALD__SERVER__FORCE_SSL: "true" }

/** Both proxies, as the README has them. */
const PROXIES = ["nginx", "haproxy"]

// The certificates here are made for one test each, and signed by nobody.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"

describe("triggers arrive through a proxy over connections that are kept", () => {
  for (const name of PROXIES) {
    test(`${TRIGGERS} through ${name}`, async t => {
      const counter = await counted(t, BEHIND_A_PROXY)
      const proxy = await behind(t, name, counter)
      const { inbox } = await connect(t, LATEST, proxy).joined(LOAD_TOPIC)
      const triggers = new Triggers(proxy, { connections: CONNECTIONS })
      t.after(() => triggers.close())
      const before = counter.seen.length

      const outcomes = await triggers.post(TRIGGERS)
      assert.deepEqual(outcomes, { 200: TRIGGERS }, complaints(outcomes, proxy, counter.herald))
      await hearsAll(inbox)
      assert.ok(counter.seen.length - before <= 2 * CONNECTIONS, `${counter.seen.length - before} connections`)
    })
  }
})

for (const name of PROXIES) {
  describe(`behind ${name} as in the README`, () => {
    let herald, proxy
    before(async () => {
      herald = await Herald.start(BEHIND_A_PROXY)
      proxy = await DocumentedProxy[name](herald)
    })
    after(async () => {
      await proxy?.close()
      await herald?.close()
    })

    for (const generation of overEachTransport([OLDEST, LATEST])) {
      test(`${generation.label} joins, pushes and hears over ${generation.transport}`, async t => {
        const channel = await connect(t, generation, proxy).joined(`public:${TEST_APP.slug}`)
        channel.push("foo-topic:msg", { by: "itself" })
        assert.deepEqual(await channel.inbox.take(), { event: "foo-topic:msg", payload: { by: "itself" } })
        const triggers = new Triggers(proxy, { connections: 1 })
        t.after(() => triggers.close())
        const loud = await connect(t, generation, proxy).joined(LOAD_TOPIC)
        assert.equal(await triggers.one(1), 200)
        assert.deepEqual(await loud.inbox.take(), { event: "msg", payload: { n: 1 } })
      })
    }

    test("its clients are told apart by their own addresses, whatever they say themselves", async t => {
      const strict = await Herald.start({ ...BEHIND_A_PROXY, HERALD__LIMITS__SESSIONS_PER_ADDRESS_MAX: "2" })
      t.after(() => strict.close())
      const proxy = await behind(t, name, strict)
      const forged = { "x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "http" }
      const open = []
      for (const localAddress of ["127.0.0.2", "127.0.0.3"]) {
        open.push(await handshake(proxy, { localAddress }), await handshake(proxy, { localAddress, headers: forged }))
        assert.equal(await handshake(proxy, { localAddress }), 429)
        assert.equal(await handshake(proxy, { localAddress, headers: forged }), 429)
      }
      assert.deepEqual(open.map(socket => socket.readyState), Array(4).fill(WebSocket.OPEN))
      for (const socket of open) socket.terminate()
    })

    test("who comes without TLS is refused", async () => {
      const direct = await fetch(`${herald.origin}/api/apps/${TEST_APP.slug}/events`, { method: "POST" })
      assert.equal(direct.status, 403)
      assert.equal(await handshake({ host: herald.host, scheme: "ws" }), 403)
    })
  })
}

describe("a socket whose URL ends with a slash", () => {
  let herald
  before(async () => {
    herald = await Herald.start()
  })
  after(() => herald?.close())

  for (const generation of overEachTransport([OLDEST, LATEST])) {
    test(`${generation.label} joins over ${generation.transport}`, async t => {
      const client = connect(t, generation, herald, { mount: "/socket/" })
      const { replies } = client.join(`public:${TEST_APP.slug}`)
      assert.deepEqual(await replies.take(), { status: "ok", response: {} })
    })
  }
})

/** A server, and in front of it what counts the connections to it. */
async function counted(t, env) {
  const herald = await Herald.start(env)
  t.after(() => herald.close())
  const counter = await Proxy.start(herald)
  t.after(() => counter.close())
  return counter
}

async function behind(t, name, upstream) {
  const proxy = await DocumentedProxy[name](upstream)
  t.after(() => proxy.close())
  return proxy
}

/** A client that goes when its test does. */
function connect(t, generation, to, options) {
  const client = new Client(generation, to, options)
  t.after(() => client.disconnect())
  return client
}

/** Waits until every trigger was heard, and fails if one was heard twice. */
async function hearsAll(inbox) {
  const heard = new Set()
  while (heard.size < TRIGGERS) {
    const { payload } = await inbox.take(`what is left after ${heard.size} triggers`)
    assert.ok(!heard.has(payload.n), `${payload.n} is heard once`)
    heard.add(payload.n)
  }
  assert.deepEqual(inbox.rest(), [])
}

/** What a failure is to say: what became of the triggers, and what each side has written about it. */
function complaints(outcomes, proxy, herald) {
  const sides = [`the proxy: ${proxy.complaints}`, `the server, ${herald.end ?? "which runs"}: ${herald.stderr}`]
  return [JSON.stringify(outcomes), ...sides].join("\n")
}

/** Opens a WebSocket; answers it, or the status with which it was refused. */
function handshake({ host, scheme }, options) {
  const socket = new WebSocket(`${scheme}://${host}/socket/websocket?vsn=2.0.0`, options)
  const settled = new Promise((resolve, reject) => {
    socket.on("open", () => resolve(socket)).on("error", reject)
    socket.on("unexpected-response", (_, response) => {
      resolve(response.statusCode)
      response.destroy()
    })
  })
  return within(settled, "a handshake")
}
