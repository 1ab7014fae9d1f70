// A window with the browser globals that phoenix.js and the articles' code use, and phoenix.js inside it.

import { readFileSync } from "node:fs"
import { createRequire } from "node:module"
import vm from "node:vm"
import WebSocket from "ws"

const require = createRequire(import.meta.url)

/** The file that users of a generation's npm package load. */
export function published({ module: name }) {
  return require.resolve(name)
}

/** Runs a generation's published file, unchanged, among the globals it expects, and returns its exports. */
export function load(generation, page = {}) {
  const window = browserGlobals(page)
  run(published(generation), window)
  return window.module.exports
}

/** Runs a file in a window. */
export function run(file, window) {
  vm.runInContext(readFileSync(file, "utf8"), window, { filename: file })
}

/** A new window; `page` adds globals to it. */
export function browserGlobals(page = {}) {
  const module = { exports: {} }
  // phoenix.js recognises binary data by its constructor, which must be the one that `ws` uses.
  const bytes = { ArrayBuffer, Uint8Array, DataView, TextEncoder, TextDecoder }
  const globals = { WebSocket, ...bytes, btoa, console, status: "", module, exports: module.exports }
  const window = vm.createContext({ ...globals, ...page })
  window.window = window.self = window
  // Some clients do not stop their heartbeat timer when they disconnect; the test must still end.
  window.setTimeout = (...timer) => setTimeout(...timer).unref()
  window.setInterval = (...timer) => setInterval(...timer).unref()
  Object.assign(window, { clearTimeout, clearInterval })
  return window
}

/** Turns a value from another realm into plain values that `assert` can compare. */
export function plain(value) {
  return value === undefined ? undefined : JSON.parse(JSON.stringify(value))
}
