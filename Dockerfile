# Builds Herald, and puts its binary into a small image that runs as an unprivileged user.

FROM rust:1-bookworm AS build
WORKDIR /herald

# This layer compiles the dependencies, for crates that are still empty. It depends only on the manifests and
# Cargo.lock, so a change of a source file or of a page does not compile the dependencies again.
COPY Cargo.toml Cargo.lock ./
COPY entity/Cargo.toml entity/
COPY migration/Cargo.toml migration/
COPY benches/load/Cargo.toml benches/load/
RUN mkdir src entity/src migration/src benches/load/src \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs entity/src/lib.rs migration/src/lib.rs benches/load/src/lib.rs \
 && sed -n '/^\[\[bench\]\]/{n;s/^name = "\(.*\)"/benches\/\1.rs/p}' Cargo.toml | xargs touch \
 && cargo build --release --locked --bin herald

# Cargo compares times: it would not compile a source file that is older than the empty one.
COPY . .
RUN touch src/main.rs src/lib.rs entity/src/lib.rs migration/src/lib.rs \
 && cargo build --release --locked --bin herald

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates curl \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && useradd --system --create-home --home-dir /herald --shell /usr/sbin/nologin herald \
 && install --directory --owner herald --group herald --mode 700 /herald/data
COPY --from=build /herald/target/release/herald /usr/local/bin/herald
USER herald
WORKDIR /herald
ENV HERALD_ENV=production
EXPOSE 4000
HEALTHCHECK --interval=10s --timeout=3s --start-period=40s \
  CMD curl --fail --silent --show-error "http://127.0.0.1:${PORT:-4000}/health" || exit 1
ENTRYPOINT ["herald"]
CMD ["serve"]
