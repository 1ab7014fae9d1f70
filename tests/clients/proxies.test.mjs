// Herald behind Debian's nginx and HAProxy, configured as in docs/operating.md and in ops/, and Java's HTTP client in front of it.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import http from "node:http"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import WebSocket from "ws"
import { Client } from "./support/client.mjs"
import { DocumentedProxy, PAGE, replaced } from "./support/documented.mjs"
import { LATEST, OLDEST, overEachTransport } from "./support/generations.mjs"
import { Herald, TEST_APP } from "./support/herald.mjs"
import { blocksOf } from "./support/markdown.mjs"
import { Proxy } from "./support/proxy.mjs"
import { LOAD_TOPIC, Triggers } from "./support/triggers.mjs"
import { eventually, within } from "./support/wait.mjs"

const JAVA = path.join(path.dirname(fileURLToPath(import.meta.url)), "java/PostTriggers.java")
const JAVA_DEADLINE_MS = 5 * 60_000

const TRIGGERS = 2000
const CONNECTIONS = 16

/** The documented settings for a proxy on the same machine. */
const BEHIND_A_PROXY = { HERALD__SERVER__TRUSTED_PROXIES: "127.0.0.1", HERALD__SERVER__FORCE_SSL: "true" }

/** The headers that a client which could speak HTTP/2 sends with every request. */
const OFFER = { connection: "Upgrade, HTTP2-Settings", upgrade: "h2c", "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA" }

/** Both documented proxies. */
const PROXIES = ["nginx", "haproxy"]

describe("a trigger that merely offers an upgrade is served, and its connection kept", () => {
  const ways = [
    { label: "nginx as documented", proxy: "nginx" },
    { label: "nginx with the offer in every request", proxy: "nginx", edit: offersAlways },
    { label: "HAProxy as documented", proxy: "haproxy" },
    { label: "HAProxy, and a client that offers HTTP/2", proxy: "haproxy", headers: OFFER },
    { label: "a client that offers HTTP/2", headers: OFFER },
  ]
  for (const { label, proxy, edit, headers } of ways) {
    test(`${TRIGGERS} through ${label}`, async t => {
      const { herald, counter } = await counted(t, proxy ? BEHIND_A_PROXY : {})
      const front = proxy ? await behind(t, proxy, counter, edit) : counter
      const { inbox } = await connect(t, LATEST, front).joined(LOAD_TOPIC)
      const triggers = new Triggers(front, { connections: CONNECTIONS, headers })
      t.after(() => triggers.close())
      const before = counter.seen.length

      const outcomes = await triggers.post(TRIGGERS)
      assert.deepEqual(outcomes, { 200: TRIGGERS }, complaints(outcomes, front, herald))
      await hearsAll(inbox, triggers)
      assert.ok(counter.seen.length - before <= 2 * CONNECTIONS, `${counter.seen.length - before} connections`)
    })
  }

  test(`${TRIGGERS} by Java's default client`, async t => {
    const { counter } = await counted(t)
    const { inbox } = await connect(t, LATEST, counter).joined(LOAD_TOPIC)
    const triggers = new Triggers(counter, { connections: 1 })
    t.after(() => triggers.close())
    const before = counter.seen.length

    assert.equal(await java(counter.origin), `${TRIGGERS} 200`)
    await hearsAll(inbox, triggers)
    assert.ok(counter.seen.length - before <= 2 * CONNECTIONS, `${counter.seen.length - before} connections`)
  })
})

for (const name of PROXIES) {
  describe(`behind ${name} as documented`, () => {
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

    test("Herald sees the addresses of the clients, even if they forge headers", async t => {
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

    test("requests without TLS are refused", async () => {
      const direct = await fetch(`${herald.origin}/api/apps/${TEST_APP.slug}/events`, { method: "POST" })
      assert.equal(direct.status, 403)
      assert.equal(await handshake({ host: herald.host, scheme: "ws" }), 403)
    })
  })
}

for (const name of PROXIES) {
  describe(`${name} in front of two servers`, () => {
    let herald
    before(async () => {
      herald = await Herald.start({ HERALD__SERVER__TRUSTED_PROXIES: "127.0.0.1" })
    })
    after(() => herald?.close())

    test("a new client gets the server that works while the other one stops, and no trigger is repeated", async t => {
      const stopping = await Stub.start(t)
      const proxy = await cluster(t, name, [stopping, herald])
      // HAProxy has to ask the server twice before it notices.
      await eventually(async () => (await handshakes(proxy)).every(outcome => outcome === "open"), "all clients to be accepted")
      const before = stopping.seen.POST
      const statuses = await triggers(proxy)
      const refused = statuses.filter(status => status === 503).length
      assert.deepEqual(statuses.filter(status => status !== 503), Array(statuses.length - refused).fill(200))
      assert.equal(stopping.seen.POST - before, refused)
      assert.ok(refused < statuses.length)
    })

    test("a server that is gone is not noticed", async t => {
      const gone = await Stub.start(t)
      const proxy = await cluster(t, name, [gone, herald])
      await gone.close()
      assert.deepEqual(await handshakes(proxy), Array(8).fill("open"))
      assert.deepEqual(new Set(await triggers(proxy)), new Set([200]))
    })
  })
}

test("nginx in front of two servers passes triggers on after both have refused clients", async t => {
  const servers = [await Stub.start(t), await Stub.start(t)]
  for (const server of servers) server.answers = { GET: 200, POST: 200 }
  const proxy = await cluster(t, "nginx", servers)
  for (const server of servers) server.answers.GET = 503
  assert.deepEqual(await handshakes(proxy), Array(8).fill(503))
  assert.deepEqual(new Set(await triggers(proxy)), new Set([200]))
})

test("nginx as documented is configured to close an idle connection before the server does", async t => {
  const herald = await Herald.start()
  t.after(() => herald.close())
  const [, minutes, seconds] = (await herald.command("check-config")).match(/^server\.keep_alive +(?:(\d+)m)? ?(?:(\d+)s)?/m)
  const { code } = (await blocksOf(PAGE)).find(({ kind }) => kind === "nginx")
  const [, kept] = code.match(/keepalive_timeout (\d+)s;/)
  assert.ok(Number(kept) < 60 * Number(minutes ?? 0) + Number(seconds ?? 0), `${kept} s are less than ${minutes} m ${seconds} s`)
})

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

/** The configuration that many guides have: nginx asks for an upgrade in every request that it forwards. */
function offersAlways(block) {
  return replaced(block, "proxy_set_header Connection $connection_upgrade;", 'proxy_set_header Connection "upgrade";')
}

/** A server, and a proxy in front of it that counts the connections. */
async function counted(t, env) {
  const herald = await Herald.start(env)
  t.after(() => herald.close())
  const counter = await Proxy.start(herald)
  t.after(() => counter.close())
  return { herald, counter }
}

async function behind(t, name, upstream, edit) {
  const proxy = await DocumentedProxy[name](upstream, edit)
  t.after(() => proxy.close())
  return proxy
}

/** A server without a Herald in it, which has an answer for each method: at first the one of a server that stops. */
class Stub {
  seen = { GET: 0, POST: 0 }
  answers = { GET: 503, POST: 503 }

  static async start(t) {
    const stub = new Stub()
    stub.server = http.createServer((request, response) => {
      stub.seen[request.method] += 1
      request.resume()
      response.writeHead(stub.answers[request.method], { "content-type": "application/json" }).end("{}")
    })
    await new Promise(resolve => stub.server.listen(0, "127.0.0.1", resolve))
    stub.host = `127.0.0.1:${stub.server.address().port}`
    t.after(() => stub.close())
    return stub
  }

  async close() {
    this.server.closeAllConnections()
    await new Promise(resolve => this.server.close(resolve))
  }
}

/** A proxy in front of two servers, as its file in ops/ configures it. */
async function cluster(t, name, servers) {
  const proxy = await DocumentedProxy.cluster(name, servers)
  t.after(() => proxy.close())
  return proxy
}

/** The outcomes of eight handshakes: `open`, or the statuses with which they were refused. */
async function handshakes(proxy) {
  const outcomes = []
  for (let n = 0; n < 8; n += 1) {
    const outcome = await handshake(proxy)
    outcomes.push(outcome instanceof WebSocket ? "open" : outcome)
    outcome.terminate?.()
  }
  return outcomes
}

/** The statuses of eight triggers. */
async function triggers({ origin }) {
  const statuses = []
  const login = Buffer.from(`${TEST_APP.key}:${TEST_APP.secret}`).toString("base64")
  const init = { method: "POST", headers: { authorization: `Basic ${login}` }, body: new URLSearchParams({ topic: "room", event: "msg" }) }
  for (let n = 0; n < 8; n += 1) statuses.push((await fetch(`${origin}/api/apps/${TEST_APP.slug}/events`, init)).status)
  return statuses
}

/** A client that disconnects at the end of its test. */
function connect(t, generation, to, options) {
  const client = new Client(generation, to, options)
  t.after(() => client.disconnect())
  return client
}

/** Checks that every trigger has arrived once. The events of a scope arrive in their order, so one more trigger is the last. */
async function hearsAll(inbox, triggers) {
  assert.equal(await triggers.one("last"), 200)
  const heard = []
  for (;;) {
    const { n } = (await inbox.take(`what is left after ${heard.length} triggers`)).payload
    if (n === "last") break
    heard.push(n)
  }
  assert.deepEqual(heard.sort((a, b) => a - b), Array.from({ length: TRIGGERS }, (_, n) => n))
}

/** The message of a failure: the outcomes of the triggers, and the logs of both sides. */
function complaints(outcomes, proxy, herald) {
  const sides = [`the proxy: ${proxy.complaints}`, `the server, ${herald.end ?? "which runs"}: ${herald.stderr}`]
  return [JSON.stringify(outcomes), ...sides].join("\n")
}

/** Opens a WebSocket; returns it, or the status with which it was refused. */
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

/** Posts the triggers with Java's client, and returns its output. */
async function java(origin) {
  const url = `${origin}/api/apps/${TEST_APP.slug}/events`
  const words = [JAVA, url, `${TEST_APP.key}:${TEST_APP.secret}`, TRIGGERS, CONNECTIONS].map(String)
  // The program ends after a moment, so the optimizing compiler and a parallel collector cost more time than they save.
  const options = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
  const { stdout } = await promisify(execFile)("java", [...options, ...words], { timeout: JAVA_DEADLINE_MS })
  return stdout.trim()
}
