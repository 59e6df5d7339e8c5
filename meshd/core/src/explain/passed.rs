//! Rules that were looked at and do not count, each with the first reason.

use mesh_proto::explain::{Passed, Rule};
use mesh_proto::resource::HttpMatchRequest;

use super::{Scene, words};
use crate::compile::Problems;
use crate::compile::hosts::takes;
use crate::compile::mesh::Settings;
use crate::compile::rules::{Asker, HttpRule, Rules, load};
use crate::plan::{Origin, Route, VirtualHost};
use crate::route::{Call, Matched, matcher};

/// A request on its way through the rules of a host.
pub(super) struct Passing<'a> {
    pub(super) scene: &'a Scene<'a>,
    pub(super) host: &'a VirtualHost,
    pub(super) call: &'a Call<'a>,
    pub(super) port: u16,
}

impl Passing<'_> {
    /// Tells of everything before the rule that counts.
    pub(super) fn all(&self, matched: Option<&Matched<'_>>) -> Vec<Passed> {
        let mesh = Settings::of(self.scene.world);
        let rules = load(self.scene.world, &mesh, &self.scene.plan.node.domain, &Problems::default());
        let about = rules.iter().filter(|rules| rules.hosts.iter().any(|host| takes(host, &self.host.host)));
        let (mine, others): (Vec<&Rules<'_>>, Vec<_>) = about.partition(|rules| self.serves(rules));
        let mut passed: Vec<Passed> =
            others.iter().map(|rules| self.not_counted(rules, mine.first().copied())).collect();
        if self.scene.gateway.is_some() {
            // Routes of several objects are one list there, those that take everything at its end.
            passed.extend(self.united(matched));
            return passed;
        }
        for rules in mine {
            passed.extend(self.through(rules, matched));
        }
        passed
    }

    /// Goes through the routes of a gateway's host up to the one that counts.
    fn united(&self, matched: Option<&Matched<'_>>) -> Vec<Passed> {
        let counts = |route: &std::sync::Arc<Route>| {
            matched.is_some_and(|matched| std::sync::Arc::ptr_eq(matched.route, route))
        };
        let before = self.host.routes.iter().take_while(|route| !counts(route));
        before.map(|route| Passed { rule: self.named(&route.origin), because: self.unmet(route) }).collect()
    }

    /// Whether the routes of the host were made of these rules.
    fn serves(&self, rules: &Rules<'_>) -> bool {
        rules.http.iter().any(|rule| self.compiled(&rule.origin).is_some())
    }

    fn compiled(&self, origin: &Origin) -> Option<&Route> {
        let same = |route: &&std::sync::Arc<Route>| route.origin == *origin && origin.object.is_some();
        self.host.routes.iter().find(same).map(|route| &**route)
    }

    /// Why rules for the host do not count at all.
    fn not_counted(&self, rules: &Rules<'_>, winner: Option<&Rules<'_>>) -> Passed {
        let because = if let Some(reason) = self.scene.not_bound(rules) {
            vec![reason]
        } else if let Some(winner) =
            winner.filter(|winner| *winner.hosts != *rules.hosts && self.closer(winner, rules))
        {
            vec![format!("{} has a host that fits better", winner.key)]
        } else if let Some(winner) = winner {
            vec![format!("{} is older and has the same host: only that one counts", winner.key)]
        } else if rules.http.is_empty() {
            vec!["it has no http routes".into()]
        } else {
            rules.http.iter().flat_map(|rule| self.unreachable(rules, rule)).collect()
        };
        Passed { rule: words::rule(self.scene.world, Some(&rules.key), "", ""), because }
    }

    /// Whether `one` names the host more closely than `other`.
    fn closer(&self, one: &Rules<'_>, other: &Rules<'_>) -> bool {
        let best = |rules: &Rules<'_>| {
            let fitting = rules.hosts.iter().filter(|host| takes(host, &self.host.host));
            fitting.map(|host| (!host.starts_with('*'), host.len())).max()
        };
        best(one) > best(other)
    }

    /// Goes through the rules in order up to the one that counts.
    fn through(&self, rules: &Rules<'_>, matched: Option<&Matched<'_>>) -> Vec<Passed> {
        let mut passed = Vec::new();
        for rule in &rules.http {
            if matched.is_some_and(|matched| matched.route.origin == rule.origin) {
                break;
            }
            let because = match self.compiled(&rule.origin) {
                Some(route) => self.unmet(route),
                None => self.unreachable(rules, rule),
            };
            passed.push(Passed { rule: self.named(&rule.origin), because });
        }
        passed
    }

    fn named(&self, origin: &Origin) -> Rule {
        words::rule(self.scene.world, origin.object.as_ref(), &origin.path, &origin.name)
    }

    /// The first condition that fails, of each alternative.
    fn unmet(&self, route: &Route) -> Vec<String> {
        let reasons = route.matchers.iter().filter_map(|conditions| {
            matcher::unmet(conditions, self.call).map(|unmet| words::unmet(conditions, unmet, self.call))
        });
        reasons.collect()
    }

    /// Why no request of this caller on this port meets a rule.
    fn unreachable(&self, rules: &Rules<'_>, rule: &HttpRule<'_>) -> Vec<String> {
        let asker = Asker { caller: &self.scene.outbound.caller, gateway: self.scene.gateway };
        let reason = |condition: &HttpMatchRequest| {
            let unmet = asker.unmet(condition, rules.namespace, self.port)?;
            let asked = words::Asked {
                gateways: &condition.gateways,
                labels: &condition.source_labels,
                namespace: &condition.source_namespace,
                port: condition.port,
            };
            Some(words::source(&asked, unmet, self.scene, self.port))
        };
        let reasons: Vec<String> = rule.http.r#match.iter().filter_map(reason).collect();
        if reasons.is_empty() { vec!["a rule before it takes every request".into()] } else { reasons }
    }
}
