//! Taking one field out of a document, or giving it another value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Number, Value, json};

/// A path of the schema, in steps.
pub(super) struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    Items,
    Values,
}

impl Path {
    /// Reads `http[].match[].headers{}.exact`, which is below `spec`.
    pub(super) fn parse(text: &str) -> Self {
        let mut steps = vec![Step::Field("spec".into())];
        for part in text.split('.') {
            let end = part.find(['[', '{']).unwrap_or(part.len());
            steps.push(Step::Field(part[..end].to_owned()));
            let rest = part.as_bytes()[end..].chunks(2);
            steps.extend(rest.map(|pair| if pair == b"[]" { Step::Items } else { Step::Values }));
        }
        Self(steps)
    }

    /// Returns where in a document the path is, as JSON pointers.
    pub(super) fn occurrences(&self, document: &Value) -> Vec<String> {
        let mut found = Vec::new();
        find(&self.0, document, String::new(), &mut found);
        found
    }
}

fn find(steps: &[Step], value: &Value, at: String, found: &mut Vec<String>) {
    let Some((step, rest)) = steps.split_first() else {
        found.push(at);
        return;
    };
    let mut into = |name: &str, child: &Value| {
        let name = name.replace('~', "~0").replace('/', "~1");
        find(rest, child, format!("{at}/{name}"), found);
    };
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => {
            if let Some(child) = map.get(name) {
                into(name, child);
            }
        }
        (Step::Items, Value::Array(items)) => {
            for (index, child) in items.iter().enumerate() {
                into(&index.to_string(), child);
            }
        }
        (Step::Values, Value::Object(map)) => {
            for (name, child) in map {
                into(name, child);
            }
        }
        _ => {}
    }
}

/// The values that cases give to each field, as JSON: what else a field may say.
pub(super) struct Values(BTreeMap<String, BTreeSet<String>>);

/// So many other values of a field are tried.
const MOST_VALUES: usize = 12;

impl Values {
    /// Gathers the values of documents, by the name of their field.
    pub(super) fn of<'a>(documents: impl Iterator<Item = &'a Value>) -> Self {
        let mut values = Self(BTreeMap::new());
        for document in documents {
            values.gather("", &document["spec"]);
        }
        values
    }

    fn gather(&mut self, name: &str, value: &Value) {
        if matches!(value, Value::String(_) | Value::Object(_)) && !name.is_empty() {
            let known = self.0.entry(name.to_owned()).or_default();
            if known.len() < MOST_VALUES {
                known.insert(value.to_string());
            }
        }
        match value {
            Value::Object(map) => map.iter().for_each(|(name, child)| self.gather(name, child)),
            Value::Array(items) => items.iter().for_each(|child| self.gather(name, child)),
            _ => {}
        }
    }

    fn known(&self, name: &str) -> impl Iterator<Item = Value> {
        let known = self.0.get(name).into_iter().flatten();
        known.filter_map(|text| serde_json::from_str(text).ok())
    }

    /// Returns the document without the field, and with other values of it.
    pub(super) fn ablations(&self, path: &Path, document: &Value, pointer: &str) -> Vec<Value> {
        let Some(value) = document.pointer(pointer) else { return Vec::new() };
        let name = path.0.iter().rev().find_map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            _ => None,
        });
        let mut all: Vec<Value> = without(document, pointer).into_iter().collect();
        // What held nothing else goes too.
        if let Some((above, _)) = pointer.rsplit_once('/')
            && document.pointer(above).and_then(Value::as_object).is_some_and(|map| map.len() == 1)
        {
            all.extend(without(document, above));
        }
        for other in self.others(name.unwrap_or_default(), value) {
            let mut document = document.clone();
            if let Some(place) = document.pointer_mut(pointer) {
                *place = other;
            }
            all.push(document);
        }
        all
    }

    fn others(&self, name: &str, value: &Value) -> Vec<Value> {
        match value {
            Value::Bool(truth) => vec![json!(!truth)],
            Value::Number(number) => numbers(number),
            Value::String(text) => {
                let known = self.known(name).filter(|other| other != value);
                let longer = text.strip_suffix('s').map(|number| format!("1{number}s"));
                known.chain(longer.into_iter().chain([format!("{text}x")]).map(Value::String)).collect()
            }
            Value::Array(items) if items.len() > 1 => vec![json!(items[1..])],
            Value::Array(items) => {
                let inner = items.first().map(|item| self.others(name, item)).unwrap_or_default();
                inner.into_iter().map(|item| json!([item])).collect()
            }
            Value::Object(map) => {
                let known = self.known(name).filter(|other| other != value);
                entries(map, |value| self.others("", value)).into_iter().chain(known).collect()
            }
            Value::Null => Vec::new(),
        }
    }
}

fn numbers(number: &Number) -> Vec<Value> {
    match number.as_u64() {
        Some(whole) => vec![json!(whole + 1), json!(whole.saturating_sub(1)), json!(whole * 2)],
        None => number.as_f64().map(|part| json!(part * 2.0)).into_iter().collect(),
    }
}

fn entries(map: &Map<String, Value>, others: impl Fn(&Value) -> Vec<Value>) -> Vec<Value> {
    let mut all = Vec::new();
    for (name, value) in map {
        let mut fewer = map.clone();
        fewer.remove(name);
        all.push(Value::Object(fewer));
        for other in others(value) {
            let mut changed = map.clone();
            changed.insert(name.clone(), other);
            all.push(Value::Object(changed));
        }
    }
    all
}

fn without(document: &Value, pointer: &str) -> Option<Value> {
    let mut document = document.clone();
    let (above, name) = pointer.rsplit_once('/')?;
    document.pointer_mut(above)?.as_object_mut()?.remove(&name.replace("~1", "/").replace("~0", "~"))?;
    Some(document)
}

/// Returns the documents as they are and, where a `DestinationRule` says `meshd.test/spread`, with its policy moved to a
/// port, to each subset, and to a port of each subset: what holds in one place holds in all.
pub(super) fn spread(documents: &[Value]) -> Vec<Vec<Value>> {
    let mut all = vec![documents.to_vec()];
    for (at, document) in documents.iter().enumerate() {
        let port = &document["metadata"]["annotations"]["meshd.test/spread"];
        let Some(port) = port.as_str().and_then(|port| port.parse::<u16>().ok()) else { continue };
        let policy = &document["spec"]["trafficPolicy"];
        let at_port = json!({"portLevelSettings": [of_port(policy, port)]});
        let subset = |policy: &Value| {
            let mut subsets = document["spec"]["subsets"].clone();
            for subset in subsets.as_array_mut().into_iter().flatten() {
                subset["trafficPolicy"] = policy.clone();
            }
            subsets
        };
        let specs = [
            json!({"trafficPolicy": at_port}),
            json!({"subsets": subset(policy)}),
            json!({"subsets": subset(&at_port)}),
        ];
        all.extend(specs.into_iter().map(|changes| {
            let mut documents = documents.to_vec();
            if let Some(spec) = documents[at]["spec"].as_object_mut() {
                spec.remove("trafficPolicy");
                spec.extend(changes.as_object().cloned().unwrap_or_default());
            }
            documents
        }));
    }
    all
}

/// What of a policy may stand at a port.
fn of_port(policy: &Value, port: u16) -> Value {
    let mut settings = json!({"port": {"number": port}});
    for name in ["loadBalancer", "connectionPool", "outlierDetection", "tls"] {
        if let Some(value) = policy.get(name) {
            settings[name] = value.clone();
        }
    }
    settings
}
