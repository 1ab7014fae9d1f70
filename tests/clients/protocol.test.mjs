// Every example of docs/protocol.md, played against a running server exactly as it is printed.
//
// The first words of a block say what it is; a block of an unknown kind fails. `<name>` stands for a value: in a received
// text the first `<name>` matches any value, which is noted, and each later one stands for the noted value. Everything else
// is compared letter by letter.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { after, before, describe, test } from "node:test"
import WebSocket from "ws"
import { basic, Herald } from "./support/herald.mjs"
import { blocksOf } from "./support/markdown.mjs"
import { mint } from "./support/token.mjs"
import { Inbox, within } from "./support/wait.mjs"

const APP = { slug: "foo-app", key: "foo-key", secret: "foo-secret-0123456789" }
const BLOCKS = await blocksOf("docs/protocol.md")

describe("docs/protocol.md", () => {
  let herald, printed
  const noted = new Map()

  before(async () => {
    herald = await Herald.start()
    const { slug: name, key, secret } = APP
    await herald.createApp({ name, key, secret, client_events: "all" })
    await herald.createApp({ name: "bar-app" })
  })
  after(() => herald?.close())

  const kinds = {
    /** Mints a token with these claims, and notes it under a name. */
    claims: (code, [name]) => {
      noted.set(name, mint(JSON.parse(code), APP.secret))
    },
    /** Messages between a client and the server, and calls of the application. */
    frames: async (code, [path]) => {
      const talk = await Talk.open(herald, path)
      for (const line of code.trim().split("\n")) await play(talk, line)
      talk.close()
    },
    sh: async code => {
      printed = await run(code.replaceAll("127.0.0.1:4000", herald.host))
    },
    /** The output of the commands before it. */
    printed: code => matches(printed.trimEnd(), code.trimEnd()),
  }

  assert.ok(BLOCKS.length >= 12, "the blocks were found")
  for (const { kind, code } of BLOCKS) {
    test(`${kind}: ${code.trim().split("\n")[0]}`, async () => {
      const [name, ...words] = kind.split(" ")
      assert.ok(kinds[name], `no test knows what to do with a block of kind "${kind}"`)
      await kinds[name](code, words)
    })
  }

  async function play(talk, line) {
    const [, sign, rest] = line.match(/^([→←⇒⇐]) (.*)$/) ?? assert.fail(`this line has no arrow: ${line}`)
    if (sign === "→") talk.send(filled(rest))
    if (sign === "←") matches(await talk.heard.take(line), rest)
    if (sign === "⇒") talk.call(filled(rest))
    if (sign === "⇐") matches(await within(talk.answer, line), rest)
  }

  /** A text to send, with every name replaced by its noted value. */
  function filled(text) {
    return text.replace(/<(\w+)>/g, (_, name) => noted.get(name) ?? assert.fail(`no value was noted for <${name}>`))
  }

  /** Compares a received text letter by letter; a name that has no value yet takes the value at its place. */
  function matches(received, expected) {
    const names = []
    const literal = text => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
    const pattern = expected.split(/(<\w+>)/).map((part, nth) => {
      if (nth % 2 === 0) return literal(part)
      const name = part.slice(1, -1)
      if (noted.has(name)) return literal(noted.get(name))
      names.push(name)
      return "([^\"]+?)"
    })
    const found = received.match(new RegExp(`^${pattern.join("")}$`))
    if (!found) assert.equal(received, expected)
    names.forEach((name, nth) => noted.set(name, found[nth + 1]))
  }
})

/** A WebSocket, and the calls of the application beside it. */
class Talk {
  static async open(herald, path) {
    const socket = new WebSocket(`ws://${herald.host}${path}`)
    const talk = new Talk(herald, socket)
    await within(new Promise((resolve, reject) => socket.on("open", resolve).on("error", reject)), "the handshake")
    return talk
  }

  constructor(herald, socket) {
    Object.assign(this, { herald, socket, heard: new Inbox("the client"), answer: null })
    socket.on("message", (data, isBinary) => this.heard.put(isBinary ? spelled(data) : data.toString()))
    socket.on("close", code => this.heard.put(`close ${code}`))
  }

  /** Sends text, or binary data that is written as `bytes 00 ff "text"`. */
  send(text) {
    this.socket.send(text.startsWith("bytes ") ? bytes(text) : text)
  }

  /** Calls `POST /path {json}` or `GET /path`, with the app's key and secret. */
  call(text) {
    const [, method, path, body] = text.match(/^(\w+) (\S+)(?: (.*))?$/)
    const headers = { authorization: basic(APP.key, APP.secret), "content-type": "application/json" }
    const called = fetch(this.herald.origin + path, { method, headers, body })
    this.answer = called.then(async response => `${response.status} ${await response.text()}`)
  }

  close() {
    assert.deepEqual(this.heard.rest(), [], "every message that arrived is on the page")
    this.socket.terminate()
  }
}

function bytes(text) {
  const parts = text.slice("bytes ".length).match(/"[^"]*"|[0-9a-f]{2}/g)
  return Buffer.concat(parts.map(part => (part[0] === '"' ? Buffer.from(part.slice(1, -1)) : Buffer.from(part, "hex"))))
}

function spelled(data) {
  return `bytes ${data.toString("hex")}`
}

async function run(code) {
  const child = spawn("bash", ["-c", `set -euo pipefail\n${code}`], { stdio: ["ignore", "pipe", "pipe"] })
  let out = ""
  let complaints = ""
  child.stdout.setEncoding("utf8").on("data", text => (out += text))
  child.stderr.setEncoding("utf8").on("data", text => (complaints += text))
  const status = await within(new Promise(resolve => child.on("close", resolve)), code, 30_000)
  assert.equal(status, 0, `${code}\n${complaints}`)
  return out
}
