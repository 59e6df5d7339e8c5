//! `meshctl validate`: files alone, no mesh.

use mesh_proto::finding::Severity;

use crate::cli::ValidateArgs;
use crate::exit::{Exit, Result};
use crate::output::{Format, json_items, say, yaml_items};
use crate::rules::{Rules, number, totals};
use crate::words::count;

/// Runs `validate`.
pub(crate) fn run(args: &ValidateArgs) -> Result<Exit> {
    let rules = Rules::read(&args.files, &args.namespace)?;
    match args.output.output {
        Format::Table => {
            rules.judge(args.strict)?;
            let warnings = number(&rules.findings, Severity::Warning);
            let but = if warnings > 0 { format!(", {}", totals(0, warnings)) } else { String::new() };
            say(&format!(
                "{} in {} valid{but}\n",
                count(rules.all.len(), "object"),
                count(rules.files, "file")
            ))?;
            return Ok(Exit::Done);
        }
        Format::Json => say(&json_items(&rules.findings)?)?,
        Format::Yaml => say(&yaml_items(&rules.findings)?)?,
    }
    let worst = if args.strict { Severity::Warning } else { Severity::Error };
    let bad = rules.findings.iter().any(|finding| finding.severity >= worst);
    Ok(if bad { Exit::Refused } else { Exit::Done })
}
