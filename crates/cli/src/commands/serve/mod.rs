//! `unicorn serve`.

mod args;
mod loader;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use unicorn_server::{Loader, Server, ServerOptions};

pub use args::ServeArgs;
use loader::ModelLoader;

use crate::config::Config;
use crate::exit::{Exit, usage};
use crate::interrupt::Catch;
use crate::output::say;
use crate::session::read_template;

/// Largest file of API keys that is read, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// Serves until it is told to end.
pub fn run(args: &ServeArgs, config: &Config) -> anyhow::Result<Exit> {
    let options = options(args, config)?;
    if !args.host.is_loopback() && options.keys.is_empty() && config.talks() {
        say!(
            "warning: everybody who reaches {} can use this server; UNICORN_API_KEY asks for a key",
            args.host
        );
    }
    let template = args.chat_template.as_deref().map(read_template).transpose()?;
    // An address that is taken should be known before a model is fetched.
    let address = SocketAddr::new(args.host, args.port);
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    let loader = Arc::new(ModelLoader::new(args, template, config)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let catch = Catch::new();
    let outcome = runtime.block_on(serve(listener, loader, options, &catch, config));
    // What is still loading is not waited for.
    runtime.shutdown_background();
    outcome.map(|()| Exit::Done)
}

fn options(args: &ServeArgs, config: &Config) -> anyhow::Result<ServerOptions> {
    let default = ServerOptions::default();
    let api_keys = api_keys(args, config)?;
    let alias = |text: &String| {
        let (pattern, model) = text.split_once('=').unwrap_or((text, ""));
        match pattern.is_empty() || pattern.matches('*').count() > 1 {
            true => Err(usage(format!("--alias {text}: wants NAME or NAME=MODEL, with one * at most"))),
            false => Ok((pattern.to_owned(), model.to_owned())),
        }
    };
    let mut aliases = args.alias.iter().map(alias).collect::<anyhow::Result<Vec<_>>>()?;
    aliases.extend(default.aliases.clone());
    Ok(ServerOptions {
        keys: api_keys,
        origins: args.cors_origin.clone(),
        hosts: args.allow_host.clone(),
        aliases,
        models_max: args.models_max,
        head_time: Duration::from_secs(args.head_timeout as u64),
        body_time: Duration::from_secs(args.body_timeout as u64),
        drain: Duration::from_secs(u64::from(args.drain)),
        log_requests: args.log_requests,
        ..default
    })
}

/// The keys of the environment and of the file. Whoever sets one of them wants keys to be asked for: where it holds none, that is an error.
fn api_keys(args: &ServeArgs, config: &Config) -> anyhow::Result<Vec<String>> {
    let mut keys = config.api_keys.clone().unwrap_or_default();
    if config.api_keys.is_some() && keys.is_empty() {
        return Err(usage("UNICORN_API_KEY: is set and holds no key; unset it to ask for none".to_owned()));
    }
    if let Some(file) = &args.api_key_file {
        keys.extend(read_keys(file)?);
    }
    Ok(keys)
}

fn read_keys(file: &Path) -> anyhow::Result<Vec<String>> {
    let named = || format!("--api-key-file {}", file.display());
    let size = std::fs::metadata(file).with_context(named)?.len();
    anyhow::ensure!(size <= KEY_FILE_BYTES_MAX, "{}: too large for keys", named());
    let text = std::fs::read_to_string(file).with_context(named)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    anyhow::ensure!(!keys.is_empty(), "{}: holds no key", named());
    Ok(keys)
}

async fn serve(
    listener: std::net::TcpListener,
    loader: Arc<ModelLoader>,
    options: ServerOptions,
    catch: &Catch,
    config: &Config,
) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    let default = loader.models().into_iter().next().map(|model| model.id).unwrap_or_default();
    let asks_for_key = !options.keys.is_empty();
    let server = Arc::new(Server::new(loader, options));
    let (end, ending) = watch::channel(false);
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.run(listener, ending).await }
    });
    if config.talks() {
        say!("listening on http://{address}, loading {default}");
    }
    let warmed = tokio::select! {
        warmed = server.warm(&default) => Some(warmed),
        () = pressed(catch) => None,
    };
    match warmed {
        Some(Ok(())) if config.talks() => {
            let encodes = server.facts(&default).is_some_and(|facts| facts.encodes);
            welcome(address, &default, asks_for_key, encodes);
        }
        Some(Err(why)) => anyhow::bail!("{why}"),
        _ => {}
    }
    pressed(catch).await;
    if config.talks() {
        say!("ending: answers under way are finished; once more ends at once");
    }
    end.send_replace(true);
    running.await.context("serving panicked")
}

/// Waits for Ctrl-C or a signal to end.
async fn pressed(catch: &Catch) {
    while !catch.pressed() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Says what to do next.
fn welcome(address: SocketAddr, model: &str, asks_for_key: bool, encodes: bool) {
    let host = match address.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let base = format!("http://{host}:{}", address.port());
    let key = if asks_for_key { " -H \"Authorization: Bearer $UNICORN_API_KEY\"" } else { "" };
    say!("ready: {model}");
    if encodes {
        say!("  OpenAI's API   {base}/v1");
        say!(
            "  try            curl{key} {base}/v1/embeddings -d '{{\"model\":\"{model}\",\"input\":\"Hello\"}}'"
        );
        return;
    }
    say!("  chat page      {base}/");
    say!("  OpenAI's API   {base}/v1");
    say!(
        "  try            curl{key} {base}/v1/chat/completions -d '{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'"
    );
}
