"""The style sheet of the report page."""

from podsrl.report.theme import css_variables

LIGHT, DARK = css_variables()

STYLE = (
    f":root{{color-scheme:light dark;--page:#fdfdfb;--card:#fff;--line:#e3e5e9;--soft:#f3f4f2;"
    f"--link:#1f57a8;{LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{--page:#14161a;--card:#1a1d22;--line:#2d3239;"
    f"--soft:#1f2329;--link:#8fbfff;{DARK}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--page);color:var(--ink);
  font:1.0625rem/1.6 Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,serif;
  font-variant-numeric:oldstyle-nums;overflow-wrap:break-word}
main,header,footer{max-width:70rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:3.5rem}
h1,h2,h3,figcaption,dl,table,nav,.aside,footer,.label{
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
  font-variant-numeric:lining-nums tabular-nums}
h1{font-size:clamp(1.7rem,1.2rem + 2.4vw,2.6rem);line-height:1.15;letter-spacing:-.02em;
  margin:0 0 .6rem;font-weight:680;text-wrap:balance}
h2{font-size:clamp(1.3rem,1.1rem + 1vw,1.65rem);line-height:1.25;letter-spacing:-.012em;
  margin:3.5rem 0 .9rem;padding-top:1.6rem;border-top:1px solid var(--line);text-wrap:balance}
h3{font-size:.8rem;letter-spacing:.07em;text-transform:uppercase;color:var(--muted);
  margin:2.2rem 0 .6rem;font-weight:640}
p,ul{max-width:42rem;margin:.5rem 0}
.lede{font-size:1.15rem;color:var(--muted)}
ul{padding-left:1.15rem}
li{margin:.45rem 0}
li::marker{color:var(--muted)}
a{color:var(--link);text-underline-offset:.15em;text-decoration-thickness:.06em}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.3rem 1.2rem;
  font-size:.9rem;line-height:1.45;margin:.6rem 0;max-width:52rem}
dt{color:var(--muted)}
dd{margin:0;min-width:0;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));
  gap:1.2rem;margin:1rem 0}
figure{margin:0;padding:1rem 1rem .6rem;background:var(--card);border:1px solid var(--line);
  border-radius:.6rem;min-width:0}
figcaption{font-size:.95rem;font-weight:600;margin:0 0 .5rem;line-height:1.35}
figcaption small{display:block;font-weight:400;font-size:.8rem;color:var(--muted)}
figure svg{display:block;width:100%;height:auto;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
.scroll{overflow-x:auto;margin:1.4rem 0;max-width:100%}
.scroll:focus-visible,a:focus-visible{outline:2px solid var(--link);outline-offset:2px}
table{border-collapse:collapse;font-size:.85rem;line-height:1.4;min-width:100%}
caption{text-align:left;font-weight:600;font-size:.95rem;padding:0 0 .5rem}
caption span{display:block;position:sticky;left:0;max-width:min(100%,calc(100vw - 2.5rem))}
th,td{padding:.42rem .9rem .42rem 0;text-align:left;vertical-align:baseline;
  white-space:nowrap}
thead,tbody{border-bottom:1px solid var(--line)}
thead th{color:var(--muted);font-weight:500;font-size:.8rem;white-space:normal;
  vertical-align:bottom}
tbody th{font-weight:600;white-space:normal;min-width:7.5rem}
details{margin:1.2rem 0}
summary{cursor:pointer;color:var(--link);font-size:.9rem;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
.bounds{color:var(--muted);font-size:.92em;margin-left:.3em}
strong .bounds{font-weight:400}
.notes{background:var(--soft);border-left:3px solid var(--arm-2);border-radius:.2rem;
  padding:.5rem 1rem .5rem 1rem;max-width:44rem}
.notes ul{margin:.2rem 0}
.aside{color:var(--muted);font-size:.85rem}
footer{margin-top:4rem;padding-top:1.2rem;padding-bottom:3rem;color:var(--muted);font-size:.85rem}
@media (max-width:32rem){
  body{font-size:1rem}
  header{padding-top:2rem}
  dl{grid-template-columns:1fr;gap:0}
  dd{margin-bottom:.55rem}
  figure{padding:.8rem .6rem .4rem}
  td .bounds{display:block;margin-left:0}
}
@media print{.scroll{overflow:visible}figure{break-inside:avoid}}
"""
)
