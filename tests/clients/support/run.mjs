// Runs the test files that are named, in this order.
//
// Most files wait more than they compute, for timers of the clients, so more of them run at a time than there are cores.

import os from "node:os"
import { run } from "node:test"
import { spec } from "node:test/reporters"

const files = process.argv.slice(2)
run({ files, concurrency: 2 * os.availableParallelism() })
  .on("test:fail", () => (process.exitCode = 1))
  .compose(new spec())
  .pipe(process.stdout)
