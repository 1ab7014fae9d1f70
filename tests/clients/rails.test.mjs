// Every example of docs/rails.md, exactly as it is printed and in its order: files of an application, scripts and tests that
// use them, the console of a page, a terminal. A few lines stand in for Rails itself, except for Active Job.

import assert from "node:assert/strict"
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises"
import net from "node:net"
import os from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { Browser } from "./support/browser.mjs"
import { Client } from "./support/client.mjs"
import { Console } from "./support/console.mjs"
import { LATEST } from "./support/generations.mjs"
import { ADMIN, Herald } from "./support/herald.mjs"
import { blocksOf } from "./support/markdown.mjs"
import { run, Terminal } from "./support/terminal.mjs"
import { eventually } from "./support/wait.mjs"

const GUARDIAN_SECRET = "a secret that several applications share, for tests only"
const APP = { name: "foo-app", key: "foo-key", secret: "foo-secret-0123456789" }

/** The parts of an application that the page does not show. */
const BOOT = `
require "active_job"
require "logger"
module Rails
  def self.logger = @logger ||= Logger.new($stdout, formatter: ->(severity, _, _, text) { "#{severity} #{text}\\n" })
end
class ApplicationController
  attr_reader :rendered
  def render(json:) = @rendered = json.to_json
  def current_user = User.new(7, "Ada")
end
User = Struct.new(:id, :name)
def current_user = User.new(7, "Ada")
class ApplicationJob < ActiveJob::Base; end
ActiveJob::Base.logger = Logger.new(nil)
ActiveJob::Base.queue_adapter = ENV.fetch("ADAPTER", "inline").to_sym
Dir[File.join(__dir__, "app/services/*.rb"), File.join(__dir__, "app/jobs/*.rb"), File.join(__dir__, "app/controllers/*.rb")].each { |file| require file }
`

const BLOCKS = await blocksOf("docs/rails.md")

describe("docs/rails.md", () => {
  let folder, herald, app, browser, terminal
  let scripts = 0
  before(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "herald-rails-"))
    await writeFile(path.join(folder, "boot.rb"), BOOT)
    herald = await Herald.start({ GUARDIAN_SECRET })
    app = await herald.createApp(APP)
    browser = await Browser.launch()
    terminal = new Terminal({ cwd: folder, folder, env: { admin: `${ADMIN.username}:${ADMIN.password}` } })
  })
  after(async () => {
    terminal?.close()
    await browser?.close()
    await herald?.close()
    await rm(folder, { recursive: true, force: true })
  })

  /** Runs a block of each kind, and checks what it does. A block with a file name becomes a file of the application. */
  const kinds = {
    "ruby app/services/herald.rb": save,
    "ruby app/jobs/herald_trigger_job.rb": save,
    "ruby app/services/herald_token.rb": save,
    "ruby app/services/herald_position.rb": save,
    "ruby position": async code => {
      const orders = 'module Order; def self.all = Herald.trigger(topic: "room", event: "msg", payload: { n: 1 }); end'
      const since = (await script(`${orders}\n${code.replaceAll('"private"', '"public"')}\nprint @herald_position`)).trim()
      await withClient(async client => {
        const { inbox } = await client.joined("public:foo-app:room", { payload: { since }, events: ["msg"] })
        assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } }, "published while the page was rendered")
      })
      const nowhere = await script(`${orders.replace(/=.*;/, "= [];")}\n${code}\nprint @herald_position`, { HERALD_URL: "http://127.0.0.1:9" })
      assert.equal(nowhere, "", "a page is rendered without Herald, too")
    },
    erb: async code => assert.match(code, /^<meta name="herald-position" content="<%= @herald_position %>">$/m),
    "ruby app/controllers/herald_tokens_controller.rb": save,
    ruby: async code => {
      await withClient(async client => {
        const { inbox } = await client.joined("public:foo-app")
        assert.equal(await script(code), "")
        const [, name] = code.match(/name: "(.*?)"/)
        assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { name, message: "Hello" } })
      })
      if (code.includes("rescue")) await fails(code)
    },
    "js browser": async code => {
      // The first token has expired, the second expires soon, the third lasts.
      const lifetimes = [-3600, 61, 3600]
      let given = 0
      const page = (await browser.open(`${herald.origin}/`)).page
      await page.route("**/herald_token", async route => {
        const lifetime = lifetimes[given++] ?? 3600
        const controller = "puts HeraldTokensController.new.tap(&:show).rendered"
        const json = lifetime === 3600 ? await script(controller) : JSON.stringify({ token: await token({ lifetime }) })
        await route.fulfill({ contentType: "application/json", body: json })
      })
      const console = await Console.open(page)
      await console.paste(code)
      assert.equal(await console.heard.take("the join with a renewed token"), "joined")
      assert.ok(given > 1, "the expired token does not join")
      await eventually(() => given >= lifetimes.length, "the token to be renewed before it expires")
      await page.unrouteAll({ behavior: "wait" })
      await page.context().close()
    },
    sh: async code => {
      const payload = { guardian_token: await token({ secret: GUARDIAN_SECRET }) }
      await withClient(async client => {
        const { replies } = client.join("private:foo-app:shared", { payload })
        assert.deepEqual(await replies.take(), { status: "error", response: { error: "invalid_token" } })
      })
      assert.match(await terminal.paste(code.replaceAll("http://127.0.0.1:4000", herald.origin)), /"shared_tokens":true/)
    },
    "ruby shared": async code => {
      const payload = { guardian_token: await script(code, { GUARDIAN_SECRET }) }
      await withClient(client => client.joined("private:foo-app:shared", { payload }))
    },
    "ruby disconnect": async code => {
      // The joins of the blocks before have the same user, so they must have ended.
      for (const channel of ["room-1", "shared"]) await herald.hasSubscribers(0, { scope: "private", channel }, app)
      await withClient(async client => {
        const payload = { guardian_token: await token({}) }
        for (const channel of ["a", "b"]) await client.joined(`private:foo-app:${channel}`, { payload })
        assert.match(await script(code), /^\{"ended" ?=> ?2\}$/)
      })
    },
    "ruby test/order_test.rb": async code => {
      assert.match(await script(code, { ADAPTER: "test" }), /3 runs, \d+ assertions, 0 failures, 0 errors, 0 skips/)
    },
    "ruby spec/order_spec.rb": async code => {
      await save(code, "spec/order_spec.rb")
      const words = ["-S", "rspec", "--require", path.join(folder, "boot.rb"), path.join(folder, "spec/order_spec.rb")]
      assert.match(await run("ruby", words, { cwd: folder, env: environment({ ADAPTER: "test" }) }), /2 examples, 0 failures/)
    },
  }

  assert.ok(BLOCKS.length >= 10, "the blocks were found")
  for (const [nth, { kind, code }] of BLOCKS.entries()) {
    test(`block ${nth + 1}, ${kind}: ${code.trim().split("\n")[0]}`, async () => {
      assert.ok(kinds[kind], `no test knows what to do with a block of kind "${kind}"`)
      await kinds[kind](code, kind.split(" ")[1])
    })
  }

  test("a call to a server that hangs fails long before the 60 seconds of Net::HTTP", async t => {
    const sockets = new Set()
    const hung = net.createServer(socket => sockets.add(socket)).listen(0, "127.0.0.1")
    t.after(() => {
      sockets.forEach(socket => socket.destroy())
      hung.close()
    })
    await new Promise(resolve => hung.once("listening", resolve))
    const code = `begin\n Herald.trigger(topic: "a", event: "b", payload: {})\nrescue Herald::Unavailable => error\n puts error.message\nend`
    // `script` itself fails after 30 seconds.
    assert.match(await script(code, { HERALD_URL: `http://127.0.0.1:${hung.address().port}` }), /Net::ReadTimeout/)
  })

  test("a job that runs again under its id triggers its event once", () =>
    withClient(async client => {
      const { inbox } = await client.joined("public:foo-app")
      const job = `job = HeraldTriggerJob.new(topic: "foo-topic", event: "msg", payload: { n: 1 })\n2.times { job.perform_now }`
      assert.equal(await script(`${job}\nHerald.trigger(topic: "foo-topic", event: "msg", payload: { n: 2 })`), "")
      for (const n of [1, 2]) assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { n } })
    }))

  /** Runs the same code without a server, and with a wrong secret: it continues, and logs a warning. */
  async function fails(code) {
    const closed = net.createServer().listen(0, "127.0.0.1")
    await new Promise(resolve => closed.once("listening", resolve))
    const { port } = closed.address()
    await new Promise(resolve => closed.close(resolve))
    assert.match(await script(code, { HERALD_URL: `http://127.0.0.1:${port}` }), /^WARN not announced: .*refused/i)
    assert.match(await script(code, { HERALD_SECRET: "wrong" }), /^WARN not announced: Herald answered 401/)
  }

  /** Calls `act` with a new client. */
  async function withClient(act) {
    const client = new Client(LATEST, herald)
    try {
      await act(client)
    } finally {
      await client.disconnect()
    }
  }

  function token({ lifetime = 3600, secret = APP.secret }) {
    return script(`puts HeraldToken.for(current_user, secret: ${JSON.stringify(secret)}, expires_at: Time.now.to_i + ${lifetime})`)
  }

  async function save(code, file) {
    await mkdir(path.dirname(path.join(folder, file)), { recursive: true })
    await writeFile(path.join(folder, file), code)
  }

  /** Runs Ruby code in the application, and returns its output. */
  async function script(code, env) {
    // The page fetches tokens while other scripts run, so each script has its own file.
    const file = `script-${(scripts += 1)}.rb`
    await save(code, file)
    return (await run("ruby", ["-r", path.join(folder, "boot.rb"), path.join(folder, file)], { cwd: folder, env: environment(env) })).trim()
  }

  function environment(env) {
    return { LANG: "C.UTF-8", HERALD_URL: herald.origin, ...env }
  }
})
