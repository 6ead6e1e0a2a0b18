// The public suite, against the address that `python -m tests.conformance` gives it.
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

runConformanceTests({ baseUrl: process.env.CONFORMANCE_URL })
