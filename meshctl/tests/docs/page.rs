//! The page of the admin port, as a browser shows it: on a demo with its traffic, light and dark, wide and narrow.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::browser::{Browser, http};
use crate::commands::{Demo, build_meshd};

const LIMIT: Duration = Duration::from_mins(1);
const PHONE: u32 = 390;

/// Looks again and again, until it holds.
fn until(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + LIMIT;
    loop {
        match holds() {
            Ok(()) => return,
            Err(why) => assert!(Instant::now() < end, "{what}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(200)); // a page is looked at, there is nothing to wait on
    }
}

fn texts(browser: &Browser, selector: &str) -> Vec<String> {
    let script = format!("return [...document.querySelectorAll({selector:?})].map((one) => one.textContent)");
    let list = browser.run(&script);
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Requests that callers have counted to `reviews`, over all hosts, and those of its version v2.
fn counted(base: &str) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for host in 1..=3 {
        let (status, text) = http(&format!("{base}.{host}:15020"), "GET", "/metrics", None);
        assert_eq!(status, 200, "{text}");
        let of_callers = |line: &&str| {
            line.starts_with("istio_requests_total{")
                && line.contains("destination_service=\"reviews.default.svc.cluster.local\"")
                && !line.contains("reporter=\"destination\"")
        };
        for line in text.lines().filter(of_callers) {
            let number: f64 =
                line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number");
            sums.0 += number;
            if line.contains("destination_version=\"v2\"") {
                sums.1 += number;
            }
        }
    }
    sums
}

/// The row of a service in the table: requests a second.
fn rate_shown(browser: &Browser, service: &str) -> Option<f64> {
    let script = format!(
        "const row = [...document.querySelectorAll('#golden tbody tr')].find((row) => row.cells[0].textContent === {service:?}); return row ? row.cells[1].textContent : null"
    );
    browser.run(&script).as_str()?.replace(',', "").trim().parse().ok()
}

#[test]
fn the_page_shows_what_the_mesh_does_in_light_and_dark_and_on_a_phone() {
    let Some(browser) = Browser::start() else {
        assert!(std::env::var_os("CI").is_none(), "chromium and chromedriver must be installed in CI");
        eprintln!("SKIPPED: chromium or chromedriver is not installed");
        return;
    };
    build_meshd();
    let demo = Demo::start(128);
    let here = format!("http://{}.1:15000/", demo.base);
    browser.resize(1_280, 1_600);
    browser.prefer("light");
    browser.open(&here);

    check_the_map(&browser);
    check_the_numbers(&browser, &demo.base);
    check_the_rest(&browser);
    let light = check_widths(&browser, "light");
    browser.prefer("dark");
    let dark = check_widths(&browser, "dark");
    assert!(light > 600 && dark < 200, "the paper is {light} in light, {dark} in dark (of 765)");

    let elsewhere: Vec<_> = browser
        .asked()
        .into_iter()
        // The browser's own first page is no request of ours.
        .filter(|url| !["data:", "chrome://"].iter().any(|own| url.starts_with(own)))
        .filter(|url| !url.starts_with(&here))
        .collect();
    assert!(elsewhere.is_empty(), "the page asks others: {elsewhere:?}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    drop(browser);
    assert!(demo.end().is_empty());
}

fn check_the_map(browser: &Browser) {
    until("the map shows the services of the demo, called", || {
        let labels = browser.run(
            "return [...document.querySelectorAll('.node')].map((node) => node.getAttribute('aria-label'))",
        );
        let labels = labels.to_string();
        for service in ["productpage", "reviews", "ratings"] {
            if !labels.contains(&format!("{service}: ")) {
                return Err(format!("no {service} in {labels}"));
            }
        }
        if labels.contains("reviews: no calls") { Err(labels) } else { Ok(()) }
    });
    // A click chooses a service, and what is known of it opens.
    browser.run("document.querySelector('[data-node^=reviews]').dispatchEvent(new Event('click'))");
    until("what is known of reviews", || {
        let told = texts(browser, "#chosen").concat();
        let all =
            ["Called by", "productpage", "v1", "v2", "reviews-v1"].iter().all(|word| told.contains(word));
        if all { Ok(()) } else { Err(told) }
    });
}

fn check_the_numbers(browser: &Browser, base: &str) {
    until("the window of the page is ten seconds long", || {
        let window = texts(browser, ".window").concat();
        if window.starts_with("10") || window.starts_with("11") || window.starts_with("12") {
            Ok(())
        } else {
            Err(window)
        }
    });
    let (before, begun) = (counted(base), Instant::now());
    // As long as the window of the page, so that both are about nearly the same requests.
    std::thread::sleep(Duration::from_secs(10));
    let (after, seconds) = (counted(base), begun.elapsed().as_secs_f64());
    let measured = (after.0 - before.0) / seconds;
    assert!(measured > 20.0, "the demo sends {measured} requests a second to reviews");
    let shown = rate_shown(browser, "reviews:9080").expect("a row for reviews");
    assert!((shown / measured - 1.0).abs() < 0.15, "the page says {shown}/s, /metrics {measured:.1}/s");
}

fn check_the_rest(browser: &Browser) {
    until("rules, hosts and changes", || {
        let rules = texts(browser, "#objects summary").concat();
        let hosts = texts(browser, "#machines tbody tr");
        let changes = texts(browser, "#history li").concat();
        let mesh = texts(browser, "#mesh").concat();
        let fine = rules.contains("VirtualService")
            && rules.contains("default/reviews")
            && hosts.len() == 3
            && hosts.iter().all(|row| row.contains("live"))
            && changes.contains("revision")
            && mesh.contains("3 hosts");
        if fine { Ok(()) } else { Err(format!("{rules} {hosts:?} {changes} {mesh}")) }
    });
    browser.run("document.querySelector('#objects details').open = true");
    assert!(texts(browser, "#objects pre").concat().contains("apiVersion"), "the rule itself");
    let trouble = browser.run("return document.getElementById('trouble').hidden");
    assert_eq!(trouble, Value::Bool(true), "{:?}", texts(browser, "#trouble"));
}

/// Nothing is wider than the window, on a screen and on a phone; returns how bright the paper is, of 765.
fn check_widths(browser: &Browser, scheme: &str) -> u64 {
    for (name, width, height) in [("screen", 1_280, 1_600), ("phone", PHONE, 2_400)] {
        browser.resize(width, height);
        until("nothing is wider than the window", || {
            let wide = browser.run("return document.documentElement.scrollWidth").as_u64().unwrap_or(0);
            if wide <= u64::from(width) { Ok(()) } else { Err(format!("{wide} of {width} on a {name}")) }
        });
        until("the map fits, too", || {
            let script = "const map = document.getElementById('picture'); return [map.scrollWidth, map.clientWidth, map.querySelectorAll('.node').length]";
            let sizes = browser.run(script);
            if sizes[2].as_u64() >= Some(4) { Ok(()) } else { Err(sizes.to_string()) }
        });
        browser.picture(&format!("{scheme}-{name}"));
    }
    let paper = browser.run("return getComputedStyle(document.documentElement).backgroundColor");
    let digits = paper.as_str().unwrap_or_default().split(|letter: char| !letter.is_ascii_digit());
    digits.filter_map(|number| number.parse::<u64>().ok()).take(3).sum()
}
