//! `meshctl explain`: which rule a request meets, why not those before it, and where it goes.

pub(crate) mod page;

use mesh_core::compile::compile;
use mesh_core::endpoint::Moment;
use mesh_core::{explain, sketch};
use mesh_proto::api::{Request, Response};
use mesh_proto::explain::{Ask, End, Explanation, Speaks};

use crate::cli::ExplainArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::offline::Files;
use crate::output::show;
use crate::rules::Rules;

/// Runs `explain`.
pub(crate) async fn run(args: &ExplainArgs, client: impl Fn() -> Result<Client>) -> Result<Exit> {
    let mut ask = ask(args)?;
    let explanation = if args.filename.is_empty() {
        let answer = client()?.call(&Request::Explain(Box::new(ask))).await?;
        *answer!(answer, Response::Explained(explanation) => explanation)?
    } else {
        let mut files = Files::read(&args.filename, &args.namespace)?;
        if !files.rules.all.is_empty() || !files.rules.findings.is_empty() {
            files.rules.judge(false)?;
        }
        ask.any_caller = true;
        let in_url = ask.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        // A visitor names the gateway's port, which says nothing of services.
        files.usual_port = ask.port.or(in_url).filter(|_| ask.gateway.is_empty());
        files.assume_destinations = true;
        of_files(&mut files, &ask)?
    };
    show(args.output.output, std::slice::from_ref(&explanation), || page::page(&explanation))?;
    Ok(if refused(&explanation) { Exit::Refused } else { Exit::Done })
}

/// Whether the mesh itself would not carry the request out.
fn refused(explanation: &Explanation) -> bool {
    matches!(explanation.outcome.kind, End::NoRoute | End::UnknownHost | End::BadRequest | End::Closed)
        || (explanation.outcome.kind == End::Forward && explanation.outcome.status.is_some())
}

/// Explains a request by files alone.
pub(crate) fn of_files(files: &mut Files, ask: &Ask) -> Result<Explanation> {
    let world = files.world()?;
    let plan = compile(&world, &sketch::node(vec![sketch::nobody()]), None);
    let mut explanation = explain::explain(&world, &plan, ask, Moment(0)).map_err(Failure::refused)?;
    if files.assumed {
        explanation.notes.push(
            "no services were given: those that the rules name are assumed, with one instance a subset (-f services.toml)"
                .into(),
        );
    }
    explanation.caller.seen_from.clear();
    if ask.from.is_empty() && ask.gateway.is_empty() {
        explanation.caller.known_as = "no caller was named (--from)".into();
    }
    put_places(&mut explanation, &files.rules);
    Ok(explanation)
}

/// Names the line of every rule and setting.
pub(crate) fn put_places(explanation: &mut Explanation, rules: &Rules) {
    let place = |object: &str, path: &str| {
        let rule = rules.all.iter().find(|rule| rule.object.key().to_string() == object)?;
        let path = if path.is_empty() || path.starts_with("spec.") {
            path.to_owned()
        } else {
            format!("spec.{path}")
        };
        Some(rule.at(&path))
    };
    let passed = explanation.passed.iter_mut().map(|passed| &mut passed.rule);
    for rule in passed.chain(explanation.rule.as_mut()) {
        rule.revision = None;
        rule.place = place(&rule.object, &rule.path);
    }
    let own = explanation.settings.iter_mut();
    for setting in own.chain(explanation.destinations.iter_mut().flat_map(|to| &mut to.settings)) {
        let mut words = setting.by.splitn(3, ' ');
        let (Some(kind), Some(name), Some(path)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let path = path.replacen("] ", "].", 1);
        setting.place = place(&format!("{kind} {name}"), &path);
    }
}

/// Reads what was typed.
fn ask(args: &ExplainArgs) -> Result<Ask> {
    let sni = args.sni.as_deref();
    let mut ask = match args.request.as_slice() {
        [only] if only.eq_ignore_ascii_case("tls") && sni.is_some() => {
            connection(Speaks::Tls, &format!("{}:{}", sni.unwrap_or_default(), args.port.unwrap_or(443)))
        }
        [url] => match url.split_once("://") {
            Some((scheme, place)) if speaks(scheme).is_some() => {
                connection(speaks(scheme).unwrap_or_default(), place.trim_end_matches('/'))
            }
            _ => of_url("GET", url).map_err(Failure::usage)?,
        },
        [word, place] if speaks(word).is_some() => connection(speaks(word).unwrap_or_default(), place),
        [method, url] => of_url(method, url).map_err(Failure::usage)?,
        _ => return Err(Failure::usage("a method and a URL are wanted, such as GET http://reviews:9080/")),
    };
    ask.sni.clone_from(&args.sni);
    ask.gateway = args.gateway.clone().unwrap_or_default();
    if ask.sni.is_some() && ask.speaks == Speaks::Tcp {
        return Err(Failure::usage(
            "--sni is for TLS: write tls HOST:PORT, or an https:// URL with --gateway",
        ));
    }
    ask.port = args.port;
    ask.from = args.from.clone().unwrap_or_default();
    for line in &args.headers {
        let (name, value) = line
            .split_once(':')
            .filter(|(name, _)| !name.trim().is_empty())
            .ok_or_else(|| Failure::usage(format!("-H {line:?} must be NAME: VALUE")))?;
        ask.headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    for label in &args.labels {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--label {label:?} must be KEY=VALUE")))?;
        ask.labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(ask)
}

/// What a word stands for that is no method.
fn speaks(word: &str) -> Option<Speaks> {
    match word.to_ascii_lowercase().as_str() {
        "tcp" => Some(Speaks::Tcp),
        "tls" => Some(Speaks::Tls),
        _ => None,
    }
}

fn connection(speaks: Speaks, place: &str) -> Ask {
    Ask { speaks, authority: place.to_owned(), ..Ask::default() }
}

/// Takes a URL apart. It is not brought to another form: how it is written may matter.
pub(crate) fn of_url(method: &str, url: &str) -> std::result::Result<Ask, String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err(format!("{url}: only http://, https://, tcp:// and tls:// are explained"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    if authority.is_empty() || authority.contains(char::is_whitespace) {
        return Err(format!("{url:?}: a URL with a host is wanted, such as http://reviews:9080/"));
    }
    // What stands behind the address of IPv6 is a port, too.
    let port = authority.rsplit(']').next().and_then(|rest| rest.rsplit_once(':')).map(|(_, port)| port);
    if let Some(port) = port.filter(|port| port.parse::<u16>().is_err()) {
        return Err(format!("{url}: {port:?} is no port (0 to 65535)"));
    }
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok(Ask { method: method.to_owned(), scheme, authority: authority.to_owned(), target, ..Ask::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_as_written() {
        let ask = of_url("GET", "http://Reviews:9080/a%2Fb?v=2").expect("a URL");
        assert_eq!((ask.authority.as_str(), ask.target.as_str()), ("Reviews:9080", "/a%2Fb?v=2"));
        assert_eq!(of_url("GET", "reviews").expect("a URL").target, "/");
        assert_eq!(of_url("GET", "http://reviews?x").expect("a URL").target, "/?x");
        assert!(of_url("GET", "tcp://reviews").is_err());
        assert!(of_url("GET", "http:///x").is_err());
        assert!(of_url("GET", "not a url").is_err());
        assert!(
            of_url("GET", "http://reviews:99999/").is_err_and(|why| why.contains("\"99999\" is no port"))
        );
        assert!(of_url("GET", "http://[::1]:x/").is_err());
        assert_eq!(of_url("GET", "http://[::1]/").expect("a URL").authority, "[::1]");
    }
}
