// The articles' Ruby code, run by Debian's ruby and ruby-jwt against a running Herald.

import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { Client } from "./support/client.mjs"
import { LATEST } from "./support/generations.mjs"
import { Herald, TEST_APP } from "./support/herald.mjs"
import { DEADLINE_MS } from "./support/wait.mjs"

const SCRIPTS = path.join(path.dirname(fileURLToPath(import.meta.url)), "ruby")
const GUARDIAN_SECRET = "a secret that Rails and Herald share, for tests only"

describe("the first article's Net::HTTP.post_form", () => {
  let herald
  before(async () => {
    herald = await Herald.start()
  })
  after(() => herald?.close())

  const triggers = [
    { label: "to its channel", broadcast: "0", event: "foo-topic:msg" },
    { label: "to everyone", broadcast: "1", event: "msg" },
  ]
  for (const { label, broadcast, event } of triggers) {
    test(`triggers an event ${label}`, async t => {
      const { inbox } = await connect(t, herald).joined("public:test-app")
      const message = "Grüße & 1+1=2; <b>%41</b>"
      const [status, body] = await ruby("pusher_event.rb", ["Ada", message, broadcast], pusher())
      assert.deepEqual([status, body], ["200", "{}"])
      assert.deepEqual(await inbox.take(), { event, payload: { name: "Ada", message } })
    })
  }

  test("a page that joins with a position from before its rendering misses nothing", async t => {
    const [since] = await ruby("page_position.rb", [], pusher())
    for (const message of ["while the page renders", "while it loads"]) await ruby("pusher_event.rb", ["Ada", message, "0"], pusher())
    const { inbox } = await connect(t, herald).joined("public:test-app:foo-topic", { payload: { since }, events: ["msg"] })
    await ruby("pusher_event.rb", ["Ada", "after its join", "0"], pusher())
    for (const message of ["while the page renders", "while it loads", "after its join"]) {
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { name: "Ada", message } })
    }
    assert.deepEqual(inbox.rest(), [])
  })

  test("is refused with a wrong secret", async () => {
    const [status] = await ruby("pusher_event.rb", ["Ada", "hello", "0"], { ...pusher(), PUSHER_SECRET: "wrong" })
    assert.equal(status, "401")
  })

  function pusher() {
    return {
      PUSHER_URL: herald.host,
      PUSHER_APP_ID: TEST_APP.slug,
      PUSHER_KEY: TEST_APP.key,
      PUSHER_SECRET: TEST_APP.secret,
      PUSHER_CHANNEL: "foo-topic",
    }
  }
})

const keys = [
  { label: "with the app's own secret", secret: TEST_APP.secret },
  { label: "with the operator's GUARDIAN_SECRET", secret: GUARDIAN_SECRET },
]
describe("the second article's Guardian helper", () => {
  let herald
  before(async () => {
    herald = await Herald.start({ GUARDIAN_SECRET, HERALD__SINGLE_APP: TEST_APP.slug })
    await herald.updateApp(TEST_APP.slug, { shared_tokens: true })
  })
  after(() => herald?.close())

  for (const { label, secret } of keys) {
    const mint = async human => {
      const [guardian_token, csrf_token] = await ruby("guardian_helper.rb", [human], { GUARDIAN_SECRET: secret })
      return { guardian_token, csrf_token }
    }

    test(`${label}: an admin's token listens and publishes in private`, async t => {
      const channel = await connect(t, herald).joined("private:123", { payload: await mint("admin"), events: ["msg"] })
      channel.push("msg", { message: "to the crew" })
      assert.deepEqual(await channel.inbox.take(), { event: "msg", payload: { message: "to the crew" } })
    })

    test(`${label}: an admin's token listens to deploys but does not publish there`, async t => {
      const channel = await connect(t, herald).joined("deploys:web", { payload: await mint("admin") })
      const reply = channel.push("msg", { revision: "evil" })
      assert.deepEqual(await reply.take(), { status: "error", response: {} })
    })

    const refusals = [
      { label: "a visitor's token does not listen in private", human: "visitor", response: "authentication_required" },
      { label: "the CSRF value is needed", human: "admin", with: { csrf_token: undefined }, response: { error: "invalid_csrf" } },
      { label: "another page's CSRF value is refused", human: "admin", with: { csrf_token: "b3RoZXI=" }, response: { error: "invalid_csrf" } },
    ]
    for (const refusal of refusals) {
      test(`${label}: ${refusal.label}`, async t => {
        const payload = { ...(await mint(refusal.human)), ...refusal.with }
        const { replies } = connect(t, herald).join("private:123", { payload })
        assert.deepEqual(await replies.take(), { status: "error", response: refusal.response })
      })
    }
  }
})

/** A client that disconnects at the end of its test. */
function connect(t, herald) {
  const client = new Client(LATEST, herald)
  t.after(() => client.disconnect())
  return client
}

/** Runs one of the Ruby scripts and returns the lines that it prints. */
function ruby(script, words, env) {
  const options = { env: { PATH: process.env.PATH, LANG: "C.UTF-8", ...env }, timeout: DEADLINE_MS }
  return new Promise((resolve, reject) => {
    execFile("ruby", [path.join(SCRIPTS, script), ...words], options, (error, printed, complained) => {
      if (error) reject(new Error(`ruby ${script} failed (it needs Debian's ruby and ruby-jwt): ${error.message}\n${complained}`))
      else resolve(printed.trimEnd().split("\n"))
    })
  })
}
